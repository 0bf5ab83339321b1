"""fold-constants: what is computed beforehand, what is too large, what is never touched."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import RecipeError
from passes.fold_constants import FoldConstants
from tests.asserting import (
    apply_pass,
    assert_rewrites,
    assert_unchanged,
    operators,
    parse,
)


@pytest.mark.parametrize(
    "expression",
    [
        "c = Exp(w) d = Transpose<perm=[1,0]>(c)",
        "c = Exp(w) e = Sub(c, w) d = Neg(e)",
        "a, b = Split<axis=0>(w, two) d = Concat<axis=0>(b, a)",
        "i = Cast<to=7>(half) d = Expand(w, i)",
    ],
)
def test_what_depends_on_constants_alone(expression: str) -> None:
    signature = "g (float[4,4] x) => (float[4,4] y)"
    more = "<float[4,4] w, int64[2] two = {2,2}, float[2] half = {4.0, 4.0}>"
    assert_rewrites(
        f"{signature} {more} {{ {expression} y = Add(x, d) }}",
        f"{signature} <float[4,4] d> {{ y = Add(x, d) }}",
        FoldConstants(),
    )


def test_sizes_through_floats_tell_the_shapes_behind_them() -> None:
    """Resize by a computed size, then Reshape by a size that follows from it."""
    text = """g (float[1,2,4,4] x) => (float[1,32] y)
    <int64 zero = {0}, float[2] half = {0.5, 0.5}, int64[2] first = {1, 2}, int64[1] i = {2},
     int64[1] j = {4}, int64[1] one = {1}, float[1] s>
    {
        shape = Shape(x)  hw = Slice(shape, i, j)  f = Cast<to=1>(hw)  g = Mul(f, half)
        h = Floor(g)  n = Cast<to=7>(h)  sizes = Concat<axis=0>(first, n)
        r = Resize<mode="nearest">(x, , , sizes)
        rs = Shape(r)  area = ReduceProd(rs)  t = Concat<axis=0>(one, area)  v = Reshape(r, t)
        p = Concat<axis=1>(v, v, v, v)  y = Identity(p)
    }"""
    graph = assert_rewrites(
        text,
        """g (float[1,2,4,4] x) => (float[1,32] y) <int64[4] sizes = {1,2,2,2}, int64[2] t = {1,8}>
        { r = Resize<mode="nearest">(x, , , sizes) v = Reshape(r, t)
          p = Concat<axis=1>(v, v, v, v) y = Identity(p) }""",
        FoldConstants(),
    )
    assert graph.shape("y") == (1, 32)


@pytest.mark.parametrize(
    ("limit", "left"), [(1 << 20, ["Add"]), (16383, ["Expand", "Add"]), (16384, ["Add"])]
)
def test_growth_is_limited(limit: int, left: list[str]) -> None:
    text = """g (float[64,64] x) => (float[64,64] y) <float[1,64] w, int64[2] s = {64,64}>
    { e = Exp(w) b = Expand(e, s) y = Add(x, b) }"""
    after = """g (float[64,64] x) => (float[64,64] y) <float[1,64] e, int64[2] s = {64,64}>
    { b = Expand(e, s) y = Add(x, b) }"""
    folded = "g (float[64,64] x) => (float[64,64] y) <float[64,64] b> { y = Add(x, b) }"
    graph = assert_rewrites(
        text, after if len(left) > 1 else folded, FoldConstants(limit_bytes=limit)
    )
    assert operators(graph) == left


def test_a_constant_that_goes_pays_for_one_result() -> None:
    """The transposed weight takes the weight's place; two results would need it twice."""
    head = "g (float[64,64] x) => (float[64,64] y) <float[64,64] w>"
    assert_rewrites(
        head + "{ t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }",
        "g (float[64,64] x) => (float[64,64] y) <float[64,64] t> { y = MatMul(x, t) }",
        FoldConstants(limit_bytes=0),
    )
    tied = head + "{ t = Transpose<perm=[1,0]>(w) h = MatMul(x, t) y = MatMul(h, w) }"
    assert_unchanged(tied, FoldConstants(limit_bytes=0))
    twice = head + "{ a = Exp(w) b = Neg(w) h = MatMul(x, a) y = MatMul(h, b) }"
    left = operators(apply_pass(parse(twice), FoldConstants(limit_bytes=0)))
    assert sorted(left) in (["Exp", "MatMul", "MatMul"], ["MatMul", "MatMul", "Neg"])


@pytest.mark.parametrize(
    "body",
    [
        "q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = Add(x, d)",
        "r = RandomNormalLike(w) y = Add(x, r)",
        "y = Exp(w)",
    ],
)
def test_never(body: str) -> None:
    signature = "g (float[4,4] x) => (float[4,4] y)"
    more = "<float[4,4] w, float s = {0.1}, uint8 z = {128}>"
    assert_unchanged(f"{signature} {more} {{ {body} }}", FoldConstants())


def test_what_cannot_run_stays_and_the_rest_is_folded() -> None:
    """An operator that ONNX Runtime does not know does not keep others from being computed."""
    text = """<ir_version: 10, opset_import: ["" : 17, "my.own" : 1]>
    g (float[2] x) => (float[2] y) <float[2] v, float[2] w>
    { a = my.own.Mystery(v) b = Exp(w) c = Add(x, b) y = Add(c, a) }"""
    graph = apply_pass(parse(text), FoldConstants())
    assert operators(graph) == ["Mystery", "Add", "Add"]


def test_options_are_checked() -> None:
    with pytest.raises(RecipeError, match="limit_bytes must be 0 or more, got -1"):
        FoldConstants(limit_bytes=-1)


def test_values_are_those_of_onnx_runtime() -> None:
    text = (
        "g (float[2] x) => (float[2] y) <float[2] w = {1.5, -2.5}> { a = Round(w) y = Add(x, a) }"
    )
    graph = assert_rewrites(
        text, "g (float[2] x) => (float[2] y) <float[2] a> { y = Add(x, a) }", FoldConstants()
    )
    (name,) = graph.constants()
    np.testing.assert_array_equal(graph.constants()[name], [2.0, -2.0])
