"""Layers as matrices: rows times matrix is what the layer computes."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir import Graph
from graphopt.refit.layers import find_layer
from tests.asserting import parse, run_model

CASES = {
    "plain": """(float[3,4,7,6] x) => (float[3,8,7,6] y) <float[8,4,3,3] w, float[8] b> {
        y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b) }""",
    "odd": """(float[3,6,9,8] x) => (float[3,4,a,b] y) <float[4,3,3,2] w> {
        y = Conv<kernel_shape=[3,2], group=2, strides=[2,1], dilations=[1,2], pads=[1,0,2,1]>(x, w)
    }""",
    "depthwise": """(float[3,5,6,6] x) => (float[3,5,3,3] y) <float[5,1,3,3] w, float[5] b> {
        y = Conv<kernel_shape=[3,3], group=5, strides=[2,2], auto_pad="SAME_UPPER">(x, w, b) }""",
    "one-dimensional": """(float[3,4,9] x) => (float[3,6,9] y) <float[6,4,3] w, float[6] b> {
        y = Conv<kernel_shape=[3], auto_pad="SAME_LOWER">(x, w, b) }""",
    "gemm": """(float[5,4] x) => (float[5,3] y) <float[3,4] w, float[3] b> {
        y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b) }""",
    "gemm whose bias counts for nothing": """(float[5,4] x) => (float[5,3] y)
    <float[4,3] w, float[3] b> { y = Gemm<alpha=0.5, beta=0.0>(x, w, b) }""",
    "gemm without a bias": """(float[5,4] x) => (float[5,3] y) <float[4,3] w> {
        y = Gemm<beta=2.0>(x, w) }""",
    "product": """(float[2,5,4] x) => (float[2,5,3] y) <float[4,3] w, float[3] b> {
        p = MatMul(x, w)
        y = Add(b, p) }""",
    "bare product": """(float[2,5,4] x) => (float[2,5,3] y) <float[4,3] w> { y = MatMul(x, w) }""",
}


@pytest.mark.parametrize("name", CASES)
def test_rows_times_matrix_is_the_output(name: str) -> None:
    model = parse("case " + CASES[name])
    graph = Graph.load(model)
    layer = find_layer(graph, graph.nodes[0])
    assert layer is not None
    rng = np.random.default_rng(1)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = rng.standard_normal(shape).astype(np.float32)
    (y,) = run_model(model, {"x": x})
    for count in (10_000, 4):
        places = layer.places(x, count, rng)
        made = layer.rows(x, places) @ layer.matrix(graph)
        np.testing.assert_allclose(made, layer.results(y, places), atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_writing_back_changes_what_is_computed(name: str) -> None:
    graph = Graph.load(parse("case " + CASES[name]))
    layer = find_layer(graph, graph.nodes[0])
    assert layer is not None
    matrix = np.random.default_rng(2).standard_normal(layer.matrix(graph).shape)
    written = layer.write(graph, matrix)
    graph.verify()
    np.testing.assert_allclose(written.matrix(graph), matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_computed(name: str) -> None:
    model = parse("case " + CASES[name])
    graph = Graph.load(model)
    layer = find_layer(graph, graph.nodes[0])
    assert layer is not None
    rng = np.random.default_rng(3)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = rng.standard_normal(shape).astype(np.float32)
    matrix = rng.standard_normal(layer.matrix(graph).shape)
    layer.write(graph, matrix)
    (y,) = run_model(graph, {"x": x})
    places = layer.places(x, 10_000, rng)
    np.testing.assert_allclose(layer.rows(x, places) @ matrix, layer.results(y, places), atol=1e-4)


def test_shared_weights_are_no_layer() -> None:
    text = """case (float[2,4] x) => (float[2,4] y) <float[4,4] w> {
        a = MatMul(x, w)
        y = MatMul(a, w) }"""
    graph = Graph.load(parse(text))
    assert [find_layer(graph, node) for node in graph.nodes] == [None, None]
