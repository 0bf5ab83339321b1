"""Codes and a codebook in the ONNX file: a quarter of the bytes, the same bits out."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest

from graphopt import train
from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.runtime import Session
from passes.prune_weights import PruneWeights
from passes.share_weights import ShareWeights
from passes.store_codebooks import StoreCodebooks
from tests.asserting import apply_pass, assert_same_outputs, assert_unchanged, assert_valid, parse
from tests.train.networks import ALONE, QUICK, vectors

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


def test_training_keeps_zeros_zero_and_values_shared() -> None:
    text = """g (float[N,6] x) => (float[N,4] y)
        <float[6,200] w, float[200] b, float[200,4] v> {
            a = Gemm(x, w, b)  r = Relu(a)  y = MatMul(r, v) }"""
    graph = apply_pass(
        parse(text), PruneWeights(sparsity=0.5), ShareWeights(bits=3), StoreCodebooks()
    )
    before = graph.constants()
    objective = train.objective_of("cross-entropy", 0.0)
    train.finetune(graph, vectors(), objective, QUICK, resources=ALONE)
    for name in ("w_values", "v_values"):
        now = graph.constants()[name]
        assert np.array_equal(now == 0, before[name] == 0)
        assert (now != before[name])[now != 0].all()


def test_small_and_varied_weights_stay() -> None:
    assert_unchanged(_NET, StoreCodebooks())
    graph = apply_pass(_shared(), StoreCodebooks())
    assert graph.constant("c") is None
    assert graph.constant("d") is not None, "biases stay"


@pytest.mark.parametrize("name", ["w", "m_" + "a" * 150])
@pytest.mark.parametrize("kind", ["float16", "float", "double"])
def test_no_file_gets_larger(name: str, kind: str) -> None:
    stored = 0
    for width in range(4, 64, 4):
        text = f"""g ({kind}[N,{width}] x) => ({kind}[N,{width}] y)
            <{kind}[{width},{width}] {name}> {{ y = MatMul(x, {name}) }}"""
        graph = apply_pass(parse(text), ShareWeights(bits=2))
        before = len(graph.to_bytes())
        StoreCodebooks().run(graph, Context(original=graph))
        after = len(graph.to_bytes())
        assert after <= before
        assert len(Graph.load(graph.to_bytes()).to_bytes()) == after
        stored += len(graph.nodes) > 1
    assert 0 < stored < 15


def test_weight_that_two_read_is_stored_once() -> None:
    text = """g (float[N,64] x) => (float[N,64] y)
        <float[64,64] w> { a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, w) }"""
    model = apply_pass(parse(text), ShareWeights(bits=3)).to_model()
    graph = apply_pass(model, StoreCodebooks())
    assert [node.op for node in graph.nodes].count("Gather") == 1
    assert_same_outputs(model, graph, tolerance=0)


def test_weight_that_several_bodies_read_is_left_alone() -> None:
    model = parse("""g (float[4,64] x, bool c) => (float[4,64] y) <float[64,64] w> {
        a = MatMul(x, w)
        y = If(c) <then_branch = t () => (float[4,64] u) { u = MatMul(a, w) },
                   else_branch = e () => (float[4,64] v) { v = Relu(a) }> }""")
    graph = apply_pass(model, ShareWeights(bits=3))
    context = Context(original=graph)
    StoreCodebooks().run(graph, context)
    assert context.notes["left_alone"] == {"w": "nodes of several bodies read it"}
    assert graph.constant("w") is not None


def test_dense_weights_are_passed_over_at_little_cost() -> None:
    graph = Graph.load(
        parse("g (float[N,999] x) => (float[N,999] y) <float[999,999] w> { y = MatMul(x, w) }")
    )
    tracemalloc.start()
    StoreCodebooks().run(graph, Context(original=graph))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * graph.constants()["w"].nbytes


def test_operator_set_without_the_cast_is_refused() -> None:
    model = parse("g (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }")
    model.opset_import[0].version = 5
    with pytest.raises(ModelError, match="need operator set 6, the model has 5"):
        apply_pass(model, StoreCodebooks())


def test_both_zeros_survive() -> None:
    model = parse("g (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }")
    array = np.zeros((64, 64), np.float32)
    array[::2], array[1::2, ::3] = -0.0, 1.5
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    book = [a for a in apply_pass(model, StoreCodebooks()).constants().values() if a.size == 3]
    assert len(book) == 1
    assert sorted(np.signbit(book[0]).tolist()) == [False, False, True]
