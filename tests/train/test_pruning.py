"""Zeros and shared values survive a training; ramps and surgery end at exact levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from graphopt import train
from graphopt.ir import Graph
from graphopt.lens import lower
from graphopt.sparse import fit_codebook, keep_weights, kept_at
from graphopt.train import Hook, Plan, Ramp, Surgery, Training
from tests.train.networks import ALONE, QUICK, perceptron, small, vectors

_PLAN = replace(QUICK, holdout=0.0)
_NAMES = ("w0", "w1")


def _array(graph: Graph, name: str) -> np.ndarray:
    array = graph.constant(name)
    assert array is not None
    return array


def _train(graph: Graph, plan: Plan = _PLAN, *hooks: Hook) -> None:
    objective = train.objective_of("cross-entropy", 0.0)
    train.finetune(graph, vectors(), objective, plan, resources=ALONE, hooks=hooks)


def _pruned(sparsity: float) -> Graph:
    graph = perceptron()
    weights = {name: _array(graph, name) for name in _NAMES}
    for name, mask in kept_at(weights, sparsity, "global").items():
        graph.set_constant(name, (weights[name] * mask).astype(np.float32))
    return graph


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_noted_zeros_stay_zero(optimizer: str) -> None:
    """Also under momentum and weight decay; what is not zero is trained."""
    graph = _pruned(0.6)
    keep_weights(graph, pruned=_NAMES)
    before = {name: _array(graph, name) for name in _NAMES}
    _train(graph, replace(_PLAN, optimizer=optimizer, weight_decay=0.01))  # type: ignore[arg-type]
    for name in _NAMES:
        now = _array(graph, name)
        assert np.array_equal(now == 0, before[name] == 0)
        assert (now != before[name])[now != 0].all()


def test_without_the_note_zeros_are_trained() -> None:
    graph = _pruned(0.6)
    _train(graph)
    assert (_array(graph, "w0") != 0).mean() > 0.9


def test_shared_values_stay_shared() -> None:
    graph = _pruned(0.4)
    books = {name: fit_codebook(_array(graph, name), 2) for name in _NAMES}
    for name, book in books.items():
        graph.set_constant(name, book.weight())
    keep_weights(graph, pruned=_NAMES, shared=_NAMES)
    _train(graph)
    for name, book in books.items():
        now = _array(graph, name)
        values = [np.unique(now[book.codes == place]) for place in range(len(book.values))]
        assert all(len(found) <= 1 for found in values)
        assert np.array_equal(now == 0, book.weight() == 0)
        assert not np.array_equal(now, book.weight())


def test_gradient_of_a_shared_value_is_the_sum() -> None:
    """Against torch's own gradient of a weight that is looked up in a codebook."""
    graph = perceptron()
    book = fit_codebook(_array(graph, "w0"), 2)
    graph.set_constant("w0", book.weight())
    keep_weights(graph, shared=("w0",))
    seen: dict[str, torch.Tensor] = {}

    class Watch(Hook):
        def after_backward(self, training: Training, done: float) -> None:
            grad = training.weights["w0"].grad
            assert grad is not None
            seen.setdefault("before", grad.clone())

        def after_step(self, training: Training, done: float) -> None:
            grad = training.weights["w0"].grad
            assert grad is not None
            seen.setdefault("after", grad.clone())

    _train(graph, replace(_PLAN, clip=0.0), Watch())
    values = torch.tensor(book.values.astype(np.float32), requires_grad=True)
    codes = torch.from_numpy(book.codes.astype(np.int64))
    (sums,) = torch.autograd.grad(values[codes], values, seen["before"])
    expected = sums[codes]
    assert torch.allclose(seen["after"], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [Ramp, Surgery])
def test_levels_are_exact_in_the_end(kind: type[Ramp] | type[Surgery]) -> None:
    graph = perceptron()
    _train(graph, _PLAN, kind(_NAMES, 0.7, "global", 0.5, interval=2))
    sizes = [_array(graph, name) for name in _NAMES]
    assert sum(int((array == 0).sum()) for array in sizes) == round(
        0.7 * sum(a.size for a in sizes)
    )


def test_ramp_leaves_shared_values_shared_and_large() -> None:
    """What it prunes of a value's elements must not pull the others to zero."""
    graph = perceptron()
    books = {name: fit_codebook(_array(graph, name), 2) for name in _NAMES}
    for name, book in books.items():
        graph.set_constant(name, book.weight())
    keep_weights(graph, shared=_NAMES)
    _train(graph, _PLAN, Ramp(_NAMES, 0.5, "uniform", 0.3, interval=1))
    for name, book in books.items():
        now = _array(graph, name)
        values = [set(now[book.codes == place]) - {0.0} for place in range(len(book.values))]
        assert (now == 0).mean() == 0.5
        assert all(len(found) <= 1 for found in values)
        assert np.abs(now[now != 0]).min() > 0.1


def test_ramp_is_cubic() -> None:
    """The level after each step is Zhu & Gupta's; it never falls."""
    graph, levels = perceptron(), list[tuple[float, float]]()

    class Watch(Hook):
        def after_step(self, training: Training, done: float) -> None:
            weights = [training.weights[name] for name in _NAMES]
            zeros = sum(int((weight == 0).sum()) for weight in weights)
            levels.append((done, zeros / sum(weight.numel() for weight in weights)))

    _train(graph, _PLAN, Ramp(_NAMES, 0.8, "global", 0.5, interval=1), Watch())
    for done, level in levels:
        wanted = 0.8 * (1 - (1 - min(done / 0.5, 1)) ** 3)
        assert level == pytest.approx(wanted, abs=0.01)


def test_surgery_lets_weights_return() -> None:
    """Something that was masked at one time is there in the end; a ramp knows no way back."""
    returned = {}
    for kind in (Ramp, Surgery):
        graph, gone = perceptron(), dict[str, np.ndarray]()
        hook = kind(_NAMES, 0.6, "global", 0.8, interval=1)

        class Watch(Hook):
            def after_step(self, training: Training, done: float) -> None:
                for name, mask in hook._masks.items():  # noqa: B023
                    before = gone.get(name, np.zeros(mask.shape, bool))  # noqa: B023
                    gone[name] = before | ~mask.cpu().numpy()  # noqa: B023

        _train(graph, replace(_PLAN, epochs=12, rate=0.3), hook, Watch())
        returned[kind] = sum(int((gone[n] & (_array(graph, n) != 0)).sum()) for n in _NAMES)
    assert returned[Ramp] == 0
    assert returned[Surgery] > 0


def test_interrupted_ramp_goes_on() -> None:
    """The state of a hook is all that another one needs to do the same."""
    training = Training(lower(small()))
    hook, other = (Ramp(("w0",), 0.5, "global", 0.5, interval=1) for _ in range(2))
    hook.start(training)
    hook.after_step(training, 0.1)
    other.restore(hook.state())
    weights = []
    for one in (hook, other):
        resumed = Training(lower(small()))
        one.after_step(resumed, 0.2)
        one.after_step(resumed, 0.6)
        weights.append(resumed.weights["w0"])
    assert torch.equal(*weights)
    assert int((weights[0] == 0).sum()) == 54
    assert torch.equal(hook.state()["numbers"], other.state()["numbers"])
