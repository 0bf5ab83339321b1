"""restore-batch-norm: outputs stay equal, and statistics are those that numpy finds."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt as go
from graphopt.data import Dataset
from graphopt.errors import DataError, ModelError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from passes.fold_batch_norm import FoldBatchNorm
from passes.restore_batch_norm import RestoreBatchNorm
from tests.asserting import assert_same_outputs, assert_valid, parse, run_model

RESIDUAL = """residual (float[N,3,6,6] x) => (float[N,5] y)
<float[4,3,3,3] w0, float[4] b0, float[8,2,3,3] w1, float[8] b1, float[8,1,3,3] w2,
 float[4,8,1,1] w3, float[4] b3, float[3,4] w4, float[3] b4, float[5,3] w5, float[5] b5,
 float lo, float hi> {
    c0 = Conv<pads=[1,1,1,1]>(x, w0, b0)
    r0 = Relu(c0)
    c1 = Conv<pads=[1,1,1,1], group=2>(r0, w1, b1)
    r1 = Clip(c1)
    c2 = Conv<pads=[1,1,1,1], group=8>(r1, w2)
    s2 = Sigmoid(c2)
    c3 = Conv(s2, w3, b3)
    a = Add(c3, r0)
    p = GlobalAveragePool(a)
    f = Flatten(p)
    g = Gemm<transB=1>(f, w4, b4)
    r4 = Relu(g)
    y = Gemm<transB=1>(r4, w5, b5)
}"""
X = np.random.default_rng(0).standard_normal((70, 3, 6, 6)).astype(np.float32)
ENDS = ["c0", "c1", "c2", "c3", "g"]


def restored(graph: Graph, step: RestoreBatchNorm, x: np.ndarray = X) -> Context:
    """Run the pass on `graph`."""
    context = Context(original=graph.clone(), calibration=Dataset.from_arrays({"x": x}))
    step.run(graph, context)
    return context


@pytest.mark.parametrize("opset", [7, 9, 13, 15, 17])
def test_outputs_stay_equal_and_statistics_are_exact(opset: int) -> None:
    model = parse(RESIDUAL, opset=opset)
    graph = Graph.load(model)
    before = graph.clone()
    assert restored(graph, RestoreBatchNorm()).notes["restored"] == ENDS
    assert_valid(graph)
    assert_same_outputs(model, graph, feeds={"x": X[:5]}, tolerance=2e-6)
    sums = run_model(before.with_outputs(ENDS), {"x": X})
    constants = {key: array.astype(np.float64) for key, array in graph.constants().items()}
    for name, values in zip(ENDS, sums, strict=True):
        axes = (0, *range(2, values.ndim))
        wide = values.astype(np.float64)
        mean, variance = wide.mean(axes), wide.var(axes)
        np.testing.assert_allclose(constants[f"{name}_bn_mean"], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(constants[f"{name}_bn_variance"], variance, rtol=1e-4)
        np.testing.assert_array_equal(constants[f"{name}_bn_shift"], constants[f"{name}_bn_mean"])
        np.testing.assert_allclose(
            constants[f"{name}_bn_scale"], np.sqrt(variance + 1e-5), rtol=1e-4
        )


def test_it_stands_before_activation_and_shortcut() -> None:
    graph = Graph.load(parse(RESIDUAL))
    restored(graph, RestoreBatchNorm())
    for name in ENDS:
        norm = graph.producer(name)
        assert norm is not None
        assert norm.op == "BatchNormalization"
    assert [node.op for node in graph.consumers("c0")] == ["Relu"]
    assert [node.op for node in graph.consumers("c3")] == ["Add"]
    last = graph.producer("y")
    assert last is not None
    assert last.op == "Gemm", "the last layer got one"


def test_a_channel_that_never_varies() -> None:
    model = parse(RESIDUAL)
    graph = Graph.load(model)
    weight = graph.constants()["w0"].copy()
    weight[1] = 0
    graph.set_constant("w0", weight)
    before = graph.to_model()
    restored(graph, RestoreBatchNorm())
    assert graph.constants()["c0_bn_variance"][1] == 0
    assert_same_outputs(before, graph, feeds={"x": X[:5]}, tolerance=2e-6)


def test_large_means_cost_no_precision() -> None:
    model = parse(RESIDUAL)
    graph = Graph.load(model)
    graph.set_constant("b0", graph.constants()["b0"].astype(np.float32) + 1e4)
    before = graph.to_model()
    restored(graph, RestoreBatchNorm())
    assert_same_outputs(before, graph, feeds={"x": X[:5]})


def test_folding_is_the_way_back() -> None:
    model = parse(RESIDUAL)
    graph = Graph.load(model)
    context = restored(graph, RestoreBatchNorm())
    FoldBatchNorm().run(graph, context)
    assert [node.op for node in graph.nodes] == [node.op for node in Graph.load(model).nodes]
    assert_same_outputs(model, graph, feeds={"x": X[:5]})


def test_twice_is_once() -> None:
    graph = Graph.load(parse(RESIDUAL))
    restored(graph, RestoreBatchNorm())
    before = graph.content_hash()
    assert restored(graph, RestoreBatchNorm()).notes["restored"] == []
    assert graph.content_hash() == before


def test_patterns_choose_layers() -> None:
    graph = Graph.load(parse(RESIDUAL))
    assert restored(graph, RestoreBatchNorm(layers=("!w[13]",))).notes["restored"] == [
        "c0", "c2", "g"
    ]  # fmt: skip
    graph = Graph.load(parse(RESIDUAL))
    assert restored(graph, RestoreBatchNorm(layers=("w5",))).notes["restored"] == ["y"]
    with pytest.raises(RecipeError, match="'w7' names none that can be normalised; there are w0"):
        restored(Graph.load(parse(RESIDUAL)), RestoreBatchNorm(layers=("w7",)))


PRODUCTS = """products (float[N,T,4] x) => (float[N,T,4] y, float[N,2] z)
<float[4,4] w, float[4] b, float[4,4] u, float[8,3] v, float[3] c, float[3,2] q, int64[2] shape> {
    h = MatMul(x, w)
    g = Add(h, b)
    r = Relu(g)
    y = MatMul(r, u)
    s = Reshape(x, shape)
    k = MatMul(s, v)
    l = Add(c, k)
    t = Tanh(l)
    z = MatMul(t, q)
}"""


def test_products_of_matrices() -> None:
    """Behind the bias that is added apart, where the channels are on axis 1."""
    model = parse(PRODUCTS)
    for tensor in model.graph.initializer:
        if tensor.name == "shape":
            tensor.raw_data = np.array([-1, 8]).tobytes()
    graph = Graph.load(model)
    x = X.reshape(-1, 2, 4)[:40]
    assert restored(graph, RestoreBatchNorm(), x).notes["restored"] == ["l"]
    assert_valid(graph)
    assert_same_outputs(model, graph, feeds={"x": x[:6]})


def test_through_the_manager_it_is_exact() -> None:
    graph = Graph.load(parse(RESIDUAL))
    data = Dataset.from_arrays({"x": X})
    result = go.PassManager(["restore-batch-norm"]).run(graph, data=data, measure=False)
    (record,) = result.report.passes
    assert record.accepted
    assert record.modified
    assert record.promise == "exact"


def test_bad_requests() -> None:
    with pytest.raises(RecipeError, match="samples must be at least 16, got 2"):
        RestoreBatchNorm(samples=2)
    with pytest.raises(DataError, match="3 inputs are too few; give at least 16"):
        restored(Graph.load(parse(RESIDUAL)), RestoreBatchNorm(), X[:3])
    with pytest.raises(RecipeError, match="give --data"):
        RestoreBatchNorm().run(graph := Graph.load(parse(RESIDUAL)), Context(original=graph))
    old = "old (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[4,3,1,1] w> { y = Conv(x, w) }"
    with pytest.raises(ModelError, match="operator set 6 is too old"):
        restored(Graph.load(parse(old, opset=6)), RestoreBatchNorm())
