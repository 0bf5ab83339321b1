"""Codes and a codebook in the ONNX file: a quarter of the bytes, the same bits out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.ir import Graph
from graphopt.runtime import Session
from passes.share_weights import ShareWeights
from passes.store_codebooks import StoreCodebooks
from tests.asserting import apply_pass, assert_same_outputs, assert_unchanged, assert_valid, parse

_NET = """g (float[N,3,16,16] x) => (float[N,50] y)
<float[32,3,3,3] c, float[32] b, float[60,32,3,3] k, float[50,60] w, float[50] d> {
    a = Conv<kernel_shape=[3,3]>(x, c, b)
    r = Relu(a)
    e = Conv<kernel_shape=[3,3]>(r, k)
    p = GlobalAveragePool(e)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w, d)
}"""


def _shared() -> onnx.ModelProto:
    return apply_pass(parse(_NET), ShareWeights(bits=5)).to_model()


@pytest.mark.parametrize("optimize", ["none", "basic", "all"])
def test_outputs_are_the_same_bits(optimize: str) -> None:
    model = _shared()
    stored = apply_pass(model, StoreCodebooks())
    assert_valid(stored)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    outputs = []
    for graph in (Graph.load(model), stored):
        with Session.open(graph, optimize=optimize) as session:  # type: ignore[arg-type]
            outputs.append(session.run(feeds)[0])
    assert outputs[0].tobytes() == outputs[1].tobytes()


def test_file_is_a_quarter() -> None:
    model = _shared()
    assert len(apply_pass(model, StoreCodebooks()).to_bytes()) < 0.3 * len(
        model.SerializeToString()
    )


def test_small_and_varied_weights_stay() -> None:
    assert_unchanged(_NET, StoreCodebooks())
    graph = apply_pass(_shared(), StoreCodebooks())
    assert graph.constant("c") is None
    assert graph.constant("d") is not None, "biases stay"


def test_weight_that_two_read_is_stored_once() -> None:
    text = """g (float[N,64] x) => (float[N,64] y)
        <float[64,64] w> { a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, w) }"""
    model = apply_pass(parse(text), ShareWeights(bits=3)).to_model()
    graph = apply_pass(model, StoreCodebooks())
    assert [node.op for node in graph.nodes].count("Gather") == 1
    assert_same_outputs(model, graph, tolerance=0)


def test_both_zeros_survive() -> None:
    model = parse("g (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }")
    array = np.zeros((64, 64), np.float32)
    array[::2], array[1::2, ::3] = -0.0, 1.5
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    book = [a for a in apply_pass(model, StoreCodebooks()).constants().values() if a.size == 3]
    assert len(book) == 1
    assert sorted(np.signbit(book[0]).tolist()) == [False, False, True]
