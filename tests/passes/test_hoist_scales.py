"""hoist-scales: constants behind a Transpose of a linear layer."""

from __future__ import annotations

import pytest

from passes.fold_affine import FoldAffine
from passes.hoist_scales import HoistScales
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = """main (float[2,5,6,4] x) => (float[2,3,5,6] y)
    <float[4,3] w, float[3] b, float[3,1,1] c, float[1,3,1,1] d, float[3] e, float[6] wide>"""
TURN = "t = Transpose <perm=[0,3,1,2]> "


@pytest.mark.parametrize("change", ["Mul (t, c)", "Mul (d, t)", "Div (t, c)"])
def test_a_factor_reaches_the_weight(change: str) -> None:
    before = f"{HEAD} {{ m = MatMul (x, w) {TURN} (m) y = {change} }}"
    after = f"{HEAD} {{ m = MatMul (x, w) y = Transpose <perm=[0,3,1,2]> (m) }}"
    assert_rewrites(before, after, HoistScales(), FoldAffine())


@pytest.mark.parametrize("change", ["Mul (t, c)", "Add (c, t)", "Sub (t, c)", "Sub (c, t)"])
@pytest.mark.parametrize("layer", ["m = MatMul (x, w)", "l = MatMul (x, w) m = Add (l, b)"])
def test_goes_before_the_transpose(layer: str, change: str) -> None:
    before = f"{HEAD} {{ {layer} {TURN} (m) y = {change} }}"
    moved = change.replace("t", "m").replace("c", "e")
    after = f"{HEAD} {{ {layer} s = {moved} y = Transpose <perm=[0,3,1,2]> (s) }}"
    assert_rewrites(before, after, HoistScales())


def test_one_number() -> None:
    number = "h = Constant <value_float=0.5> ()"
    before = f"{HEAD} {{ {number} m = MatMul (x, w) {TURN} (m) y = Mul (t, h) }}"
    after = f"{HEAD} {{ m = MatMul (x, w) y = Transpose <perm=[0,3,1,2]> (m) }}"
    assert_rewrites(before, after, HoistScales(), FoldAffine())


STAYS = {
    "another axis": f"m = MatMul (x, w) {TURN} (m) y = Mul (t, wide)",
    "another reader": f"m = MatMul (x, w) {TURN} (m) s = Mul (t, c) y = Add (s, t)",
    "no layer": f"m = Softmax (q) {TURN} (m) y = Mul (t, c)",
    "an activation": f"l = MatMul (x, w) m = Relu (l) {TURN} (m) y = Mul (t, c)",
    "a dividend": f"m = MatMul (x, w) {TURN} (m) y = Div (c, t)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    head = HEAD.replace("] x)", "] x, float[2,5,6,3] q)")
    assert_unchanged(f"{head} {{ {body} }}", HoistScales())
