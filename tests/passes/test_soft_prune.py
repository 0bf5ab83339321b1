"""soft-prune: what is zero in the end is zero everywhere, and its removal changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.coupling import couple
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.train import SoftZeros, filters_of
from passes.remove_channels import RemoveChannels
from passes.soft_prune import SoftPrune
from tests.asserting import assert_same_outputs, parse
from tests.passes.test_slim import SHORT, TEXT, X, data

RESIDUAL = TEXT.replace("r1 = Relu(n1)", "a = Add(n1, r0) r1 = Sigmoid(a)")


def softened(text: str, step: SoftPrune) -> tuple[Graph, dict[str, list[int]]]:
    graph = Graph.load(parse(text))
    context = Context(original=graph.clone(), calibration=data(labels=True))
    step.run(graph, context)
    zero = context.notes["zero"]
    assert isinstance(zero, dict)
    return graph, zero  # type: ignore[return-value]


@pytest.mark.parametrize("text", [TEXT, RESIDUAL], ids=["chain", "residual"])
@pytest.mark.parametrize("importance", ["geometric-median", "l2"])
@pytest.mark.parametrize("epochs", [2.0, 1.5])
def test_the_cut_equals_the_soft_pruned(text: str, importance: str, epochs: float) -> None:
    """Also where the training ends between two epochs, and zero is not what activations keep."""
    step = SoftPrune(ratio=0.5, importance=importance, **{**SHORT, "epochs": epochs})  # type: ignore[arg-type]
    graph, zero = softened(text, step)
    soft = graph.clone()
    families = {family.name: family for family in couple(graph).families}
    assert zero.keys() == families.keys()
    for name, gone in zero.items():
        assert len(gone) == 4
        for member in families[name].members:
            array = graph.constants()[member.tensor]
            if "var" in member.tensor:
                assert (array.astype(np.float64) > 0).all()
                continue
            for channel in range(8):
                rows = np.take(array, member.of(channel), axis=member.axis)
                assert np.any(rows) == (channel not in gone), (member.tensor, channel)
    context = Context(original=soft)
    RemoveChannels(ratio=0.5, importance="l1").run(graph, context)
    kept = context.notes["families"]
    assert isinstance(kept, dict)
    assert kept == {n: [c for c in range(8) if c not in gone] for n, gone in zero.items()}
    assert_same_outputs(soft.to_model(), graph, feeds={"x": X[:8]})


def test_filters_grow_again_and_others_go() -> None:
    """Another filter may be least after an epoch in which a zero one grew."""
    seen = []

    class Spy(SoftZeros):
        def after_epoch(self, training: object, done: float) -> None:
            super().after_epoch(training, done)  # type: ignore[arg-type]
            weights = training.weights["w0"].detach()  # type: ignore[attr-defined]
            rows = weights.abs().sum((1, 2, 3)).numpy()
            seen.append((set(np.flatnonzero(rows == 0)), set(self.gone["w0"])))

        def before_step(self, training: object, done: float) -> None:
            grown.append(bool(training.weights["w0"].detach().abs().sum((1, 2, 3)).all()))  # type: ignore[attr-defined]

    grown: list[bool] = []
    from graphopt.train import Guided, recover

    graph = Graph.load(parse(TEXT))
    coupling = couple(graph)
    hook = Spy(0.5, "l2", 1, coupling, coupling.families)
    plan = Guided(epochs=3, batch=16, rate=0.05, precision="float32", augment=(), holdout=0.0)
    recover(graph, graph.clone(), data(labels=True), plan, hooks=[hook])
    assert all(zero == gone and len(gone) == 4 for zero, gone in seen)
    assert any(grown[5:]), "no filter that was zero has grown"


def test_filters_are_what_makes_channels() -> None:
    coupling = couple(Graph.load(parse(RESIDUAL)))
    (family,) = coupling.families
    found = {(member.tensor, member.axis) for member in filters_of(coupling.graph, family)}
    assert found == {("w0", 0), ("w1", 0)}


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="ratio must be between 0 and 1, got 1"):
        SoftPrune(ratio=1.0)
    with pytest.raises(RecipeError, match=r"holdout must be 0, got 0\.1"):
        SoftPrune(holdout=0.1)
    with pytest.raises(RecipeError, match="give --data"):
        SoftPrune().run(graph := Graph.load(parse(TEXT)), Context(original=graph))
