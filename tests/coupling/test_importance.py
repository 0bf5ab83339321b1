"""Criteria order channels as their papers say, and say so where they do not apply."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.coupling import couple
from graphopt.coupling.importance import IMPORTANCES, importance
from graphopt.coupling.reconstruction import backward, forward, lasso
from graphopt.coupling.statistics import Activation, Reading, Statistics
from graphopt.errors import ModelError
from graphopt.ir import Graph
from tests.asserting import parse

TEXT = """two (float[N,3,4,4] x) => (float[N,2,4,4] y)
<float[4,3,1,1] w, float[4] s, float[4] b, float[4] mean, float[4] var, float[2,4,1,1] v> {
    a = Conv(x, w)
    n = BatchNormalization(a, s, b, mean, var)
    r = Relu(n)
    y = Conv(r, v)
}"""
EMPTY = Statistics()


def _scores(
    name: str, constants: dict[str, np.ndarray], statistics: Statistics = EMPTY, how: str = "mean"
) -> list[float] | None:
    graph = Graph.load(parse(TEXT))
    for key, array in constants.items():
        graph.set_constant(key, array.astype(np.float32))
    (family,) = couple(graph).families
    found = importance(name, family, graph, statistics, how)
    return None if found is None else found.tolist()


W = np.zeros((4, 3, 1, 1))
W[:, 0, 0, 0] = [1, -2, 3, 2]
V = np.ones((2, 4, 1, 1))


@pytest.mark.parametrize(
    ("name", "how", "wanted"),
    [
        ("l1", "mean", [0.75, 1, 1.25, 1]),  # (1, 2, 3, 2) / 2 and (1, 1, 1, 1)
        ("l1", "sum", [1.5, 2, 2.5, 2]),
        ("l1", "max", [1, 1, 1.5, 1]),
        ("l2", "mean", [0.75, 1, 1.25, 1]),
        ("batch-norm-scale", "mean", [1, 2, 3, 4]),
        ("geometric-median", "sum", [6 / 8.0, 12 / 8.0, 8 / 8.0, 6 / 8.0]),
    ],
)
def test_from_weights(name: str, how: str, wanted: list[float]) -> None:
    arrays = {"w": W, "v": V, "s": np.array([-1, 2, 3, -4])}
    np.testing.assert_allclose(_scores(name, arrays, how=how), wanted, rtol=1e-5)  # type: ignore[arg-type]


def test_random_is_seeded_and_differs_by_seed() -> None:
    first, again = (_scores("random", {}, Statistics(seed=3)) for _ in range(2))
    assert first == again != _scores("random", {}, Statistics(seed=4))


def _activation(tensor: str, rows: list[np.ndarray], zeros: np.ndarray) -> Activation:
    return Activation(tensor, tensor == "r", rows[0], rows[1], rows[2], zeros)


def test_from_activations() -> None:
    rows = [np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1]), np.array([1.0, 1, 1, 5])]
    zeros = np.array([0.5, 0, 0.25, 0.75])
    seen = {"w": (_activation("r", rows, zeros), _activation("n", rows, zeros * 0))}
    statistics = Statistics(seen)
    assert _scores("activation-variance", {}, statistics) == [1.6, 1.2, 0.8, 0.4]
    assert _scores("mean-activation", {}, statistics) == [0.5, 0.5, 0.5, 2.5]
    np.testing.assert_allclose(_scores("apoz", {}, statistics), (1 - zeros) / 0.625)  # type: ignore[arg-type]


def test_what_does_not_apply_gives_no_scores() -> None:
    for name in ("apoz", "mean-activation", "reconstruction", "hessian-diagonal"):
        assert _scores(name, {}) is None
        assert IMPORTANCES[name].lacks


def test_errors_of_layers_are_relative_to_what_they_compute() -> None:
    gram = np.diag([1.0, 2, 3, 4])
    reading = Reading("y", gram, np.array([1.0, 1, 1, 2]))
    found = _scores("hessian-diagonal", {}, Statistics(readings={"w": (reading, reading)}), "sum")
    np.testing.assert_allclose(found, [0.2, 0.2, 0.2, 0.4])  # type: ignore[arg-type]
    backwards = _scores("reconstruction", {}, Statistics(readings={"w": (reading, reading)}))
    np.testing.assert_allclose(backwards, [0.1, 0.3, 0.6, 1.0])  # type: ignore[arg-type]


def test_weights_that_are_no_numbers_are_named() -> None:
    with pytest.raises(ModelError, match="weight 'v' holds NaN"):
        _scores("random", {"v": np.full((2, 4, 1, 1), np.nan)})


def _gram(seed: int, size: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((40, size)) @ rng.standard_normal((size, size))
    return parts.T @ parts


@pytest.mark.parametrize("seed", range(3))
def test_backward_is_the_greedy_removal(seed: int) -> None:
    gram = _gram(seed)
    gone: list[int] = []
    for _ in range(len(gram)):
        waiting = [c for c in range(len(gram)) if c not in gone]
        gone.append(min(waiting, key=lambda c: float(gram[[*gone, c]][:, [*gone, c]].sum())))
    assert np.argsort(backward(gram), kind="stable").tolist() == gone


@pytest.mark.parametrize("seed", range(3))
def test_forward_is_the_greedy_selection_with_refit(seed: int) -> None:
    gram = _gram(seed)
    whole, with_whole = gram.sum(), gram.sum(axis=1)

    def error(chosen: list[int]) -> float:
        part = gram[np.ix_(chosen, chosen)]
        return float(whole - with_whole[chosen] @ np.linalg.solve(part, with_whole[chosen]))

    chosen: list[int] = []
    for _ in range(len(gram)):
        waiting = [c for c in range(len(gram)) if c not in chosen]
        chosen.append(min(waiting, key=lambda c: error([*chosen, c])))
    scores = forward(gram)
    assert np.argsort(-scores, kind="stable").tolist() == chosen
    np.testing.assert_allclose(scores[chosen[3]], error(chosen[:3]) / whole, rtol=1e-6)


def test_lasso_drops_a_channel_that_another_one_stands_for() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((200, 3))
    parts = np.column_stack([base, 0.02 * base[:, 0] + 0.001 * rng.standard_normal(200)])
    scores = lasso(parts.T @ parts)
    assert scores.argmin() == 3
    assert all(a > b for a, b in itertools.pairwise(sorted(scores, reverse=True)))
