"""slim: scales shrink with the pull, nothing else changes, and what is slim can be removed."""

from __future__ import annotations

from typing import Literal, TypedDict

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.errors import DataError, RecipeError
from graphopt.ir import Graph
from graphopt.manager import PassManager
from graphopt.passbase import Context, Pass
from passes.prune_weights import PruneWeights
from passes.recover import Recover
from passes.remove_channels import RemoveChannels
from passes.restore_batch_norm import RestoreBatchNorm
from passes.slim import Slim
from passes.soft_prune import SoftPrune
from tests.asserting import assert_same_outputs, assert_valid, parse

TEXT = """net (float[N,3,6,6] x) => (float[N,4] y)
<float[8,3,3,3] w0, float[8] s0, float[8] t0, float[8] m0, float[8] var0,
 float[8,8,3,3] w1, float[8] s1, float[8] t1, float[8] m1, float[8] var1,
 float[4,8] w2, float[4] b2> {
    c0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0)
    n0 = BatchNormalization(c0, s0, t0, m0, var0)
    r0 = Relu(n0)
    c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r0, w1)
    n1 = BatchNormalization(c1, s1, t1, m1, var1)
    r1 = Relu(n1)
    p = GlobalAveragePool(r1)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w2, b2)
}"""
RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 3, 6, 6)).astype(np.float32)
LABELS = RNG.integers(0, 4, 64)


def data(*, labels: bool) -> Dataset:
    return Dataset.from_arrays({"x": X}, LABELS if labels else None)


def slimmed(l1: float, *, labels: bool = True, families: tuple[str, ...] = ()) -> Graph:
    graph = Graph.load(parse(TEXT))
    context = Context(original=graph.clone(), calibration=data(labels=labels))
    Slim(l1=l1, families=families, **SHORT).run(graph, context)
    scales = context.notes["scales"]
    assert isinstance(scales, dict)
    assert scales["count"] == (16 if not families else 8)
    assert context.notes["steps"] == 12
    return graph


class Short(TypedDict):
    """Options of a training that ends soon and computes alike each time."""

    epochs: float
    batch: int
    rate: float
    precision: Literal["float32"]
    layout: Literal["contiguous"]
    augment: tuple[str, ...]


SHORT = Short(epochs=3.0, batch=16, rate=0.05, precision="float32", layout="contiguous", augment=())


def mean_scale(graph: Graph, *names: str) -> float:
    constants = graph.constants()
    return float(np.mean([np.abs(constants[n].astype(np.float64)) for n in names or ("s0", "s1")]))


@pytest.mark.parametrize("labels", [True, False])
def test_scales_shrink_the_more_the_stronger_the_pull(labels: bool) -> None:
    found = [mean_scale(slimmed(l1, labels=labels)) for l1 in (0.0, 0.03, 0.1, 0.3)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.85 * found[0]


def test_without_a_pull_it_is_training() -> None:
    graph = Graph.load(parse(TEXT))
    context = Context(original=graph.clone(), calibration=data(labels=True))
    Recover(holdout=0.0, **SHORT).run(graph, context)
    pulled = slimmed(0.0)
    for name, array in graph.constants().items():
        np.testing.assert_array_equal(pulled.constants()[name], array, err_msg=name)


@pytest.mark.parametrize("labels", [True, False])
def test_the_original_teaches_where_it_should(labels: bool) -> None:
    """The same with labels and without, and not the same as with labels learned."""
    found = []
    for has, learn in ((labels, "original"), (False, "auto"), (True, "labels")):
        graph = Graph.load(parse(TEXT))
        context = Context(original=graph.clone(), calibration=data(labels=has))
        Recover(holdout=0.0, learn=learn, **SHORT).run(graph, context)  # type: ignore[arg-type]
        found.append(graph.content_hash())
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_only_what_can_be_removed_is_pulled() -> None:
    """The outputs of the second layer are named by no pattern; their scales train as ever."""
    free, some = slimmed(0.0), slimmed(0.3, families=("w0",))
    assert mean_scale(some, "s0") < 0.8 * mean_scale(free, "s0")
    assert mean_scale(some, "s1") > 0.9 * mean_scale(free, "s1")


def test_what_faded_is_found_and_removed() -> None:
    graph = Graph.load(parse(TEXT))
    scale = graph.constants()["s0"].copy()
    scale[[1, 4]] = 1e-4
    graph.set_constant("s0", scale)
    before, context = graph.clone(), Context(original=graph.clone())
    step = RemoveChannels(ratio=0.125, importance="batch-norm-scale", allocation="global")
    step.run(graph, context)
    assert_valid(graph)
    assert graph.shape("w0") == (6, 3, 3, 3)
    assert graph.shape("w1") == (8, 6, 3, 3)
    assert_same_outputs(step.reference(before, context).to_model(), graph, feeds={"x": X[:4]})


def test_training_follows_a_cut() -> None:
    graph = Graph.load(parse(TEXT))
    context = Context(original=graph.clone(), calibration=data(labels=False))
    RemoveChannels(ratio=0.5, importance="batch-norm-scale").run(graph, context)
    Recover(**SHORT).run(graph, context)
    assert context.notes["steps"] == 12
    assert graph.shape("w0") == (4, 3, 3, 3)


def test_a_folded_network_is_slimmed_after_restoring() -> None:
    folded = TEXT.replace("n0 = BatchNormalization(c0, s0, t0, m0, var0)", "n0 = Identity(c0)")
    folded = folded.replace("n1 = BatchNormalization(c1, s1, t1, m1, var1)", "n1 = Identity(c1)")
    graph = Graph.load(parse(folded))
    for name in ("w0", "w1"):
        weight = graph.constants()[name].astype(np.float32)
        graph.set_constant(name, np.multiply(weight, 0.1, dtype=np.float32))
    context = Context(original=graph.clone(), calibration=data(labels=False))
    with pytest.raises(RecipeError, match="run restore-batch-norm first"):
        Slim(**SHORT).run(graph, context)
    RestoreBatchNorm().run(graph, context)
    names = "c0_bn_scale", "c1_bn_scale"
    before = mean_scale(graph, *names)
    Slim(l1=0.3, **SHORT).run(graph, context)
    assert mean_scale(graph, *names) < 0.9 * before


@pytest.mark.parametrize(
    "step",
    [
        Recover(learn="labels"),
        Slim(learn="labels"),
        SoftPrune(learn="labels"),
        PruneWeights(sparsity=0.5, course="ramp", learn="labels"),
    ],
    ids=lambda step: step.name,
)
def test_labels_that_are_not_there_are_asked_for_before_anything_runs(step: Pass) -> None:
    with pytest.raises(DataError, match="has no labels"):
        PassManager([step]).run(Graph.load(parse(TEXT)), data=data(labels=False), measure=False)


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="learn is one of auto, labels, original, got 'nothing'"):
        Slim(learn="nothing")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="l1 must be at least 0, got -1"):
        Slim(l1=-1)
    with pytest.raises(RecipeError, match="give --data"):
        Slim().run(graph := Graph.load(parse(TEXT)), Context(original=graph))
