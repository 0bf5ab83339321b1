"""merge-duplicates: what is computed or stored twice, and what only looks so."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from graphopt.ir import Graph
from passes.merge_duplicates import MergeDuplicates
from tests.asserting import (
    apply_pass,
    assert_rewrites,
    assert_same_outputs,
    assert_unchanged,
    parse,
)

HEAD = "g (float[2,4] x) => (float[p,q] y)"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = Exp(x) b = Exp(x) y = Add(a, b)", "a = Exp(x) y = Add(a, a)"),
        (
            "a = Exp(x) b = Exp(x) c = Neg(a) d = Neg(b) y = Add(c, d)",
            "a = Exp(x) c = Neg(a) y = Add(c, c)",
        ),
        (
            "a = Softmax<axis=1>(x) b = Softmax<axis=1>(x) y = Add(a, b)",
            "a = Softmax<axis=1>(x) y = Add(a, a)",
        ),
        ("a = Reshape(x, s) b = Reshape(x, t) y = Add(a, b)", "a = Reshape(x, s) y = Add(a, a)"),
        (
            "a, b = Split<axis=1>(x, e) c, d = Split<axis=1>(x, e) h = Add(a, c) y = Add(h, d)",
            "a, b = Split<axis=1>(x, e) h = Add(a, a) y = Add(h, b)",
        ),
    ],
)
def test_computed_twice(before: str, after: str) -> None:
    more = "<int64[2] s = {4,2}, int64[2] t = {4,2}, int64[2] e = {2,2}>"
    assert_rewrites(
        f"{HEAD} {more} {{ {before} }}", f"{HEAD} {more} {{ {after} }}", MergeDuplicates()
    )


@pytest.mark.parametrize(
    "body",
    [
        "a = Softmax<axis=0>(x) b = Softmax<axis=1>(x) y = Add(a, b)",
        "a = Sub(x, c) b = Sub(c, x) y = Add(a, b)",
        "a = RandomNormalLike(x) b = RandomNormalLike(x) y = Add(a, b)",
        "a = Reshape(x, s) b = Reshape(x, t) y = MatMul(a, b)",
    ],
)
def test_not_the_same(body: str) -> None:
    more = "<float[4] c, int64[2] s = {4,2}, int64[2] t = {2,4}>"
    assert_unchanged(f"{HEAD} {more} {{ {body} }}", MergeDuplicates())


def test_two_outputs_keep_their_names() -> None:
    text = "g (float[2] x) => (float[2] y, float[2] z) { y = Exp(x) z = Exp(x) }"
    assert_unchanged(text, MergeDuplicates())
    before = "g (float[2] x) => (float[2] y, float[2] z) { a = Exp(x) y = Exp(x) z = Neg(a) }"
    after = "g (float[2] x) => (float[2] y, float[2] z) { y = Exp(x) z = Neg(y) }"
    assert_rewrites(before, after, MergeDuplicates())


def two_weights(columns: int, *, equal: bool = True) -> onnx.ModelProto:
    model = parse(
        f"""g (float[2,32] x) => (float[p,q] y) <float[32,{columns}] w, float[32,{columns}] v>
        {{ a = MatMul(x, w) b = Neg(x) c = MatMul(b, v) y = Add(a, c) }}"""
    )
    if equal:
        model.graph.initializer[1].raw_data = model.graph.initializer[0].raw_data
    return model


@pytest.mark.parametrize(
    ("columns", "equal", "left"), [(33, True, 1), (33, False, 2), (32, True, 2)]
)
def test_stored_twice(columns: int, equal: bool, left: int) -> None:
    """Up to 4 KiB, 32 rows of 32 floats, equal constants may be chance."""
    model = two_weights(columns, equal=equal)
    graph = apply_pass(model, MergeDuplicates())
    assert len(graph.constants()) == left
    assert_same_outputs(model, graph)


def test_one_bit_is_a_difference() -> None:
    model = two_weights(33)
    graph = Graph.load(model)
    value = np.array(graph.constants()["v"])
    value[-1, -1] = np.nextafter(value[-1, -1], np.float32(9))
    graph.set_constant("v", value)
    assert len(apply_pass(graph.to_model(), MergeDuplicates()).constants()) == 2


def test_equal_bits_of_two_types_are_not_the_same() -> None:
    types = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz)
    model = parse(
        """g (float[1] x) => (float[1] y) {
            a = Cast <to=1> (c0) b = Cast <to=1> (c1) d = Sub (a, b) y = Add (x, d)
        }""",
        opset=19,
    )
    for place, dtype in enumerate(types):
        array = np.array([0x3C], np.uint8).view(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"c{place}"))
    assert_same_outputs(model, apply_pass(model, MergeDuplicates()))


def test_small_constants_are_merged_only_if_asked() -> None:
    """Two biases that are equal by chance would couple two layers."""
    text = """g (float[N,4,8,8] x) => (float[N,4,8,8] y)
    <float[4,4,1,1] v, float[4,4,1,1] w, float[4] b = {1.0, 2.0, 3.0, 4.0},
     float[4] c = {1.0, 2.0, 3.0, 4.0}> {
        h = Conv(x, v, b)
        y = Conv(h, w, c)
    }"""
    assert len(apply_pass(parse(text), MergeDuplicates()).constants()) == 4
    assert len(apply_pass(parse(text), MergeDuplicates(above_bytes=8)).constants()) == 3
