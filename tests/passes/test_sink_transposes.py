"""sink-transposes: islands between Transposes, and every operator that follows."""

from __future__ import annotations

import pytest

from graphopt.rewrite.layouts import MOVES
from passes.sink_transposes import SinkTransposes
from tests.asserting import assert_rewrites, assert_unchanged

IN = "Transpose <perm=[0,2,3,1]>"
OUT = "Transpose <perm=[0,3,1,2]>"
HEAD = """main (float[2,3,4,5] x, float[2,3,4,5] z) => (float[a,b,c,d] y)
<float[3] c, float[1,3,1,1] k, float[5,3] m, float[1,3,1,5] mt, float[4,5,3] whole,
 float[1,3,4,5] turned, float[2,4,5,3] full, float[2,3,4,5] fully, float half = {0.5},
 int64[8] pads = {0,1,2,0,0,0,1,0}, int64[8] turned_pads = {0,0,1,2,0,0,0,1},
 int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] last = {-1},
 int64[2] middle = {1,2}, int64[2] back = {2,3}, int64[1] first = {0},
 int64[2] picks = {2, 0}, int64[1] second = {1}, int64[1] zeroth = {0},
 float[4] grown = {1,2,1,1}, float[4] grown_turned = {1,1,2,1}>"""

PAIRS = {
    "unary": ("b = Relu (a)", "y = Relu (x)"),
    "a constant per channel": ("b = Add (a, c)", "y = Add (x, k)"),
    "a constant before": ("b = Sub (c, a)", "y = Sub (k, x)"),
    "a constant over pixels": ("b = Mul (a, m)", "y = Mul (x, mt)"),
    "a constant of three axes": ("b = Mul (a, whole)", "y = Mul (x, turned)"),
    "a number": ("b = Mul (a, half)", "y = Mul (x, half)"),
    "clip": ("b = Clip (a, half)", "y = Clip (x, half)"),
    "concat": ("b = Concat <axis=-1> (a, a)", "y = Concat <axis=1> (x, x)"),
    "concat with a constant": ("b = Concat <axis=1> (a, full)", "y = Concat <axis=2> (x, fully)"),
    "pad": ("b = Pad (a, pads)", "y = Pad (x, turned_pads)"),
    "reduce": (
        "b = ReduceMean <axes=[1,2]> (a)",
        "y = ReduceMean <axes=[2,3]> (x)",
    ),
    "reduce by an input": ("b = ReduceSum (a, middle)", "y = ReduceSum (x, back)"),
    "reduce everything": ("b = ReduceSum (a)", "y = ReduceSum (x)"),
    "softmax": ("b = Softmax (a)", "y = Softmax <axis=1> (x)"),
    "slice": (
        "b = Slice (a, one, three, last)",
        "y = Slice (x, one, three, second)",
    ),
    "slice without axes": (
        "b = Slice (a, first, one)",
        "y = Slice (x, first, one, zeroth)",
    ),
    "gather": ("b = Gather <axis=3> (a, picks)", "y = Gather <axis=1> (x, picks)"),
    "resize": (
        'b = Resize <mode="nearest"> (a, , grown)',
        'y = Resize <mode="nearest"> (x, , grown_turned)',
    ),
    "quantize": (
        "q = QuantizeLinear (a, half) b = DequantizeLinear (q, half)",
        "q = QuantizeLinear (x, half) y = DequantizeLinear (q, half)",
    ),
    "several": ("d = Sigmoid (a) b = Mul (a, d)", "d = Sigmoid (x) y = Mul (x, d)"),
}


@pytest.mark.parametrize(("island", "after"), PAIRS.values(), ids=PAIRS.keys())
def test_follows(island: str, after: str) -> None:
    assert_rewrites(
        f"{HEAD} {{ a = {IN} (x) {island} y = {OUT} (b) }}",
        f"{HEAD} {{ {after} }}",
        SinkTransposes(),
    )


def test_every_table_row_names_an_operator() -> None:
    assert {"Add", "Concat", "Pad", "Relu", "Slice", "Softmax", "Split"} <= set(MOVES)


def test_two_branches_meet() -> None:
    before = f"""{{ a = {IN} (x) b = {IN} (z) d = Add (a, b) e = Mul (d, c) r = Relu (e)
                   s, t = Split <axis=3, num_outputs=2> (r) u = Concat <axis=3> (t, s)
                   y = {OUT} (u) }}"""
    after = """{ d = Add (x, z) e = Mul (d, k) r = Relu (e)
                 s, t = Split <axis=1, num_outputs=2> (r) y = Concat <axis=1> (t, s) }"""
    assert_rewrites(HEAD + before, HEAD + after, SinkTransposes(), opset=18)


def test_channels_last_network() -> None:
    head = """main (float[2,6,6,3] x) => (float[2,4] y)
    <float[4,3,3,3] w, float[4,4,1,1] v, float[4] b, float[1,4,1,1] bt, float[4] s,
     float[1,4,1,1] st>"""
    before = f"""{{
        p = {OUT} (x) c = Conv <pads=[1,1,1,1]> (p, w) n = {IN} (c) a = Add (n, b) r = Relu (a)
        q = {OUT} (r) d = Conv (q, v) e = {IN} (d) f = Mul (e, s) g = Add (f, r) h = Relu (g)
        y = ReduceMean <axes=[1,2], keepdims=0> (h) }}"""
    after = f"""{{
        p = {OUT} (x) c = Conv <pads=[1,1,1,1]> (p, w) a = Add (c, bt) r = Relu (a)
        d = Conv (r, v) f = Mul (d, st) g = Add (f, r) h = Relu (g)
        y = ReduceMean <axes=[2,3], keepdims=0> (h) }}"""
    assert_rewrites(head + before, head + after, SinkTransposes())


def test_an_output_inside_is_turned_back() -> None:
    head = """main (float[2,3,4,5] x) => (float[2,4,5,3] r, float[2,3,4,5] y, float[2,3,4,5] u)"""
    before = f"{{ a = {IN} (x) r = Relu (a) y = {OUT} (r) t = Tanh (r) u = {OUT} (t) }}"
    after = f"{{ y = Relu (x) u = Tanh (y) r = {IN} (y) }}"
    assert_rewrites(head + before, head + after, SinkTransposes())


def test_a_transpose_after_a_reduction_moves_less() -> None:
    head = "main (float[2,3,4,5] x) => (float[2,1,1,3] y)"
    before = f"{{ a = {IN} (x) y = ReduceMax <axes=[1,2]> (a) }}"
    after = f"{{ a = ReduceMax <axes=[2,3]> (x) y = {IN} (a) }}"
    assert_rewrites(head + before, head + after, SinkTransposes())


STAYS = {
    "nothing to meet": f"a = {IN} (x) b = Relu (a) y = Abs (b)",
    "another operator between": f"a = {IN} (x) b = CumSum (a, half_axis) y = {OUT} (b)",
    "a computed operand of lower rank": f"n = Neg (c) a = {IN} (x) b = Add (a, n) y = {OUT} (b)",
    "an unknown rank": f"r = Reshape (x, shape) a = {IN} (r) b = Add (a, r) y = {OUT} (b)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    head = """main (float[2,3,4,5] x, int64[n] shape) => (float[a,b,c,d] y)
    <float[3] c, int64 half_axis = {1}>"""
    assert_unchanged(f"{head} {{ {body} }}", SinkTransposes())


def test_old_softmax_flattens_and_stays() -> None:
    head = "main (float[2,3,4,5] x) => (float[2,3,4,5] y)"
    body = f"{{ a = {IN} (x) b = Softmax <axis=3> (a) y = {OUT} (b) }}"
    assert_unchanged(head + body, SinkTransposes(), opset=11)


def test_a_slice_by_short_integers_keeps_their_type() -> None:
    head = """main (float[2,3,4,5] x) => (float[a,b,c,d] y)
    <int32[1] one = {1}, int32[1] two = {2}, int32[1] last = {3}, int32[1] moved = {1}>"""
    assert_rewrites(
        f"{head} {{ a = {IN} (x) b = Slice (a, one, two, last) y = {OUT} (b) }}",
        f"{head} {{ y = Slice (x, one, two, moved) }}",
        SinkTransposes(),
    )


def test_a_sum_over_no_axes_adds_nothing() -> None:
    head = "main (float[2,3,4,5] x) => (float[a,b,c,d] y) <int64[0] none = {}>"
    body = f"a = {IN} (x) b = ReduceSum <noop_with_empty_axes=1> (a, none) y = {OUT} (b)"
    assert_unchanged(f"{head} {{ {body} }}", SinkTransposes())
