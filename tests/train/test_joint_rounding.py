"""Joint rounding: two layers at once come nearer to what is wanted, and never farther from it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.ir import Graph, part
from graphopt.train import Descent, JointTask, Unrounded, learn_joint_rounding
from tests.asserting import parse

NETWORK = """net (float[N,3] x) => (float[N,2] y) <float[3,2] w, float[2,2] v> {
    a = MatMul(x, w)
    b = Relu(a)
    y = MatMul(b, v)
}"""


def task(seed: int) -> tuple[JointTask, np.ndarray, np.ndarray]:
    graph = Graph.load(parse(NETWORK))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((256, 3)).astype(np.float32)
    w, v = (rng.uniform(-2, 2, shape).astype(np.float32) for shape in ((3, 2), (2, 2)))
    aim = np.maximum(x @ w, 0) @ v
    one = np.ones(1, np.float32)
    weights = tuple(Unrounded(array, one, 0 * one, (-2, 2)) for array in (w, v))
    return JointTask(part(graph, ["x", "w", "v"], ["y"]), (x,), weights, aim), w, v


def error(one: JointTask, w: np.ndarray, v: np.ndarray) -> float:
    made = np.maximum(one.reads[0] @ w, 0) @ v
    return float(np.square(made - one.aim).mean() / np.square(one.aim).mean())


def test_both_layers_together_come_nearer_to_the_best_of_all() -> None:
    """Ten weights: gradients end between the nearest codes and the best of all 1,024."""
    nearest, learned = [], []
    for seed in (0, 3, 4):
        one, w, v = task(seed)
        (found_w, found_v), errors = learn_joint_rounding(
            one, Descent(200, 64, 0.03, 0.1, 0, "cpu")
        )
        nearest.append(error(one, np.rint(w), np.rint(v)))
        learned.append(error(one, found_w, found_v))
        assert errors == pytest.approx((nearest[-1], learned[-1]), rel=1e-4)
        best = min(
            error(
                one,
                np.floor(w) + np.reshape(up[:6], (3, 2)),
                np.floor(v) + np.reshape(up[6:], (2, 2)),
            )
            for up in itertools.product((0, 1), repeat=10)
        )
        assert 0.999 * best <= learned[-1] <= 1.001 * nearest[-1]
        assert np.abs(found_w).max() <= 2
    assert sum(learned) < 0.9 * sum(nearest)


def test_what_training_does_not_better_stays() -> None:
    one, w, v = task(2)
    exact = JointTask(
        one.piece, one.reads,
        tuple(Unrounded(np.rint(a), np.ones(1, np.float32), np.zeros(1, np.float32), (-2, 2))
              for a in (w, v)),
        np.maximum(one.reads[0] @ np.rint(w), 0) @ np.rint(v),
    )  # fmt: skip
    found, errors = learn_joint_rounding(exact, Descent(3, 8, 5.0, 0.1, 0, "cpu"))
    assert errors == (0.0, 0.0)
    for codes, wanted in zip(found, (w, v), strict=True):
        np.testing.assert_array_equal(codes, np.rint(wanted))
