"""fold-permutations: selections and reorderings of channels beside convolutions."""

from __future__ import annotations

import pytest

from passes.fold_permutations import FoldPermutations
from tests.asserting import assert_rewrites, assert_unchanged

ORDER = "i = Constant <value_ints=[3,0,-4,1,5,4]> ()"
WEIGHTS = """<float[8,6,1,1] w, float[8] b, float[6,1,3,3] dw, float[6] db, float[8,6,3,3] v,
    float[6,3,1,1] two, float[6,6,1,1] q>"""
HEAD = f"main (float[2,6,7,7] x) => (float[2,8,n,m] y) {WEIGHTS}"

PATHS = {
    "a convolution": "y = Conv (@, w, b)",
    "with pads": "y = Conv <pads=[1,1,1,1], strides=[2,2]> (@, v)",
    "two convolutions": "c = Conv (@, w, b) d = Conv (@, w2) y = Add (c, d)",
    "an activation": "r = Relu (@) y = Conv (r, w)",
    "bounds": "lo = Constant <value_float=-0.5> () r = Clip (@, lo) y = Conv (r, w)",
    "pooling": "r = MaxPool <kernel_shape=[2,2]> (@) y = Conv (r, w)",
    "depthwise": "d = Conv <group=6, pads=[1,1,1,1]> (@, dw, db) r = Relu (d) y = Conv (r, w, b)",
    "depthwise without a bias": "d = Conv <group=6> (@, dw) y = Conv (d, w)",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_an_order_goes_into_the_weights(path: str) -> None:
    head = HEAD.replace("float[8] b", "float[8] b, float[8,6,1,1] w2")
    before = f"{head} {{ {ORDER} g = Gather <axis=1> (x, i) {path.replace('@', 'g')} }}"
    assert_rewrites(before, f"{head} {{ {path.replace('@', 'x')} }}", FoldPermutations())


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize(("index", "count"), [("2,0,1", 3), ("1,-1", 2), ("0,0,2", 3)])
def test_a_convolution_makes_what_is_taken(index: str, count: int, bias: str) -> None:
    head = f"main (float[2,4,5,5] x) => (float[2,{count},5,5] y)"
    before = f"""{head} <float[3,4,1,1] w, float[3] b> {{ i = Constant <value_ints=[{index}]> ()
        c = Conv (x, w{bias}) y = Gather <axis=-3> (c, i) }}"""
    after = f"{head} <float[{count},4,1,1] w, float[{count}] b> {{ y = Conv (x, w{bias}) }}"
    assert_rewrites(before, after, FoldPermutations())


STAYS = {
    "another reader": "c = Conv (g, w) s = ReduceMean <axes=[1]> (g) y = Add (c, s)",
    "groups": "c = Conv <group=2> (g, two) y = Conv (c, w)",
    "an end in depthwise": "d = Conv <group=6> (g, dw) s = Softmax <axis=1> (d) y = Conv (s, w)",
    "shared weights": "c = Conv (g, q) d = Conv (x, q) a = Add (c, d) y = Conv (a, w)",
    "two ways that meet": "r = Relu (g) s = Sigmoid (g) a = Mul (r, s) y = Conv (a, w)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_an_order_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {ORDER} g = Gather <axis=1> (x, i) {body} }}", FoldPermutations())


MADE = {
    "more than there are": "[0,1,2,3,4,5,6,7,0]",
    "another axis": "[1,0]",
    "read elsewhere": "[1]",
}


@pytest.mark.parametrize("index", MADE.values(), ids=MADE.keys())
def test_what_a_convolution_makes_stays(index: str) -> None:
    axis = 2 if index == "[1,0]" else 1
    end = "s = ReduceMean (c) y = Add (g, s)" if index == "[1]" else "y = Abs (g)"
    text = f"""{HEAD} {{ i = Constant <value_ints={index}> () c = Conv (x, w, b)
        g = Gather <axis={axis}> (c, i) {end} }}"""
    assert_unchanged(text, FoldPermutations())


def test_a_selection_before_stays() -> None:
    order = "i = Constant <value_ints=[3,0,3,1,5,4]> ()"
    text = f"{HEAD} {{ {order} g = Gather <axis=1> (x, i) y = Conv (g, w) }}"
    assert_unchanged(text, FoldPermutations())


def test_an_output_stays() -> None:
    head = HEAD.replace("[2,8,n,m] y", "[2,8,n,m] y, float[2,6,7,7] g")
    text = f"{head} {{ {ORDER} g = Gather <axis=1> (x, i) y = Conv (g, w) }}"
    assert_unchanged(text, FoldPermutations())
