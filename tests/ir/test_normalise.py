"""Exporters' habits are undone on load; each case is a file that went wrong somewhere."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.ir import Graph
from tests.asserting import assert_same_outputs, assert_valid, operators, parse


def test_coincidental_share_through_identity_is_given_copies() -> None:
    """The TorchScript exporter merges equal biases; cutting one must not cut the others."""
    model = parse(
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y)
        <float[4,3,1,1] v, float[4,4,1,1] w, float[4] b> {
            c = Identity(b)
            h = Conv(x, v, b)
            y = Conv(h, w, c)
        }"""
    )
    graph = Graph.load(model)
    first, second = (node.inputs[2].name for node in graph.nodes)
    assert first != second
    assert_same_outputs(model, graph, tolerance=0)


def test_true_tying_is_kept() -> None:
    graph = Graph.load(
        parse(
            """g (float[2,4] x) => (float[2,4] y) <float[4,4] w> {
                h = MatMul(x, w)
                y = MatMul(h, w)
            }"""
        )
    )
    assert [node.inputs[1].name for node in graph.nodes] == ["w", "w"]


def test_constant_nodes_become_initializers() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) {
            a = Constant<value_floats=[1.0, 2.0]>()
            b = Constant<value = float[2] {3.0, 4.0}>()
            s = Add(x, a)
            y = Mul(s, b)
        }"""
    )
    graph = Graph.load(model)
    assert operators(graph) == ["Add", "Mul"]
    assert_same_outputs(model, graph, tolerance=0)


def test_constant_that_is_an_output_stays() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Constant<value_floats=[1.0, 2.0]>() }")
    graph = Graph.load(model)
    assert_same_outputs(model, graph, tolerance=0)


def test_uniform_weights_are_weights_but_cost_nothing_on_disk() -> None:
    """The light models of the onnx wheel make their weights with ConstantOfShape."""
    model = parse(
        """g (float[N,512] x) => (float[N,512] y) {
            s = Constant<value_ints=[512, 512]>()
            w = ConstantOfShape<value = float[1] {0.5}>(s)
            y = MatMul(x, w)
        }"""
    )
    graph = Graph.load(model)
    weight = graph.constant("w")
    assert weight is not None
    assert weight.shape == (512, 512)
    assert operators(graph) == ["MatMul"]
    assert len(graph.to_bytes()) < 1000
    assert_valid(graph)
    assert_same_outputs(model, graph, tolerance=0)


SHAPE_ARITHMETIC = """g (float[{batch},3,8,8] x) => (float[{batch},192] y) {{
    s = Shape(x)
    i = Constant<value_int=0>()
    b = Gather(s, i)
    a = Constant<value_ints=[0]>()
    u = Unsqueeze(b, a)
    m = Constant<value_ints=[{rest}]>()
    t = Concat<axis=0>(u, m)
    y = Reshape(x, t)
}}"""


def test_shape_arithmetic_of_known_sizes_is_folded() -> None:
    model = parse(SHAPE_ARITHMETIC.format(batch=2, rest=192))
    graph = Graph.load(model)
    assert operators(graph) == ["Reshape"]
    assert_same_outputs(model, graph, tolerance=0)


def test_shape_arithmetic_of_an_open_batch_stays_right() -> None:
    model = parse(SHAPE_ARITHMETIC.format(batch="N", rest=-1))
    graph = Graph.load(model)
    for size in (1, 3):
        feeds = {"x": onnx.numpy_helper.to_array(_ones((size, 3, 8, 8)))}
        assert_same_outputs(model, graph, tolerance=0, feeds=feeds)


def _ones(shape: tuple[int, ...]) -> onnx.TensorProto:
    size = 1
    for dim in shape:
        size *= dim
    return helper.make_tensor("x", TensorProto.FLOAT, shape, [1.0] * size)


@pytest.mark.parametrize("wrong", [[7, 7], None])
def test_declared_output_shapes_are_not_trusted(wrong: list[int] | None) -> None:
    model = parse("g (float[2,3] x) => (float[2,3] y) { h = Relu(x) y = Exp(h) }")
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, wrong))
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [9]))
    graph = Graph.load(model)
    assert graph.shape("y") == (2, 3)
    assert graph.shape("h") == (2, 3)


def test_one_name_for_two_unknown_sizes_is_no_equality() -> None:
    model = parse("g (float[A,A] x) => (float[A,A] y) { y = Relu(x) }")
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "?"
    graph = Graph.load(model)
    assert graph.shape("x") == (None, None)


SPLIT = """g (float[N,7,2] x) => (float[N,A,2] y, float[N,B,2] z)
<int64 part = {3}, int64 first = {0}, int64 last = {-1}> {
    parts = SplitToSequence<axis = 1>(x, part)
    a = SequenceAt(parts, first)
    b = SequenceAt(parts, last)
    y = Relu(a)
    z = Neg(b)
}"""


def test_picked_elements_of_a_split_sequence_become_a_split() -> None:
    model = parse(SPLIT)
    graph = Graph.load(model)
    assert operators(graph) == ["Split", "Relu", "Neg"]
    assert graph.shape("b") == ("N", 1, 2)
    assert_valid(graph)
    assert_same_outputs(model, graph, tolerance=0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SequenceAt(parts, last)", "ConcatFromSequence<axis = 1>(parts)"),
        ("int64 last = {-1}", "int64 last = {0}"),
        ("(x, part)", "(x)"),
    ],
    ids=["also read whole", "one element twice", "single indices"],
)
def test_other_sequences_stay(old: str, new: str) -> None:
    text = SPLIT.replace("[N,A,2]", "[N,A,B]").replace("[N,B,2]", "[N,B,C]").replace(old, new)
    model = parse(text)
    graph = Graph.load(model)
    assert "SplitToSequence" in operators(graph)
    assert_same_outputs(model, graph, tolerance=0)
