"""convolve-affine: factors and offsets between convolutions."""

from __future__ import annotations

import pytest

from passes.convolve_affine import ConvolveAffine
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = """main (float[2,3,8,8] x) => (float[2,8,8,8] y)
<float[8,3,1,1] w, float[8,1,3,3] v, float s = {0.5}, float[1] t = {0.25}, float[8,1,1] each,
 float[8,1,1,1] dw, float[8] db, float[8,8] image, float[8,3,3,3] u>"""
CONV = "c = Conv (x, w)"
NEXT = "y = Conv <group=8, pads=[1,1,1,1]> (q, v)"
ONE = "q = Conv <group=8, kernel_shape=[1,1]> (r, dw, db)"


@pytest.mark.parametrize(
    "middle",
    [
        "m = Mul (s, r) q = Add (m, t)",
        "m = Mul (r, each) n = Sub (m, each) q = Div (n, t)",
        "q = Add (r, t)",
        "q = Sub (t, r)",
    ],
)
@pytest.mark.parametrize(
    "activation",
    ["r = Relu (c)", "g = HardSigmoid (c) r = Mul (c, g)", "a = Relu (c) r = Tanh (a)"],
)
def test_between_convolutions(middle: str, activation: str) -> None:
    assert_rewrites(
        f"{HEAD} {{ {CONV} {activation} {middle} {NEXT} }}",
        f"{HEAD} {{ {CONV} {activation} {ONE} {NEXT} }}",
        ConvolveAffine(),
    )


def test_other_readers_may_be_anything() -> None:
    head = HEAD.replace("float[2,8,8,8] y", "float[2,8,8,8] y, float[2,8,8,8] z")
    tail = "z = Sigmoid (q)"
    assert_rewrites(
        f"{head} {{ {CONV} r = Relu (c) q = Add (r, t) {NEXT} {tail} }}",
        f"{head} {{ {CONV} r = Relu (c) {ONE} {NEXT} {tail} }}",
        ConvolveAffine(),
    )


STAYS = {
    "a factor alone folds elsewhere": f"{CONV} r = Relu (c) q = Mul (r, s) {NEXT}",
    "an offset that folds": f"{CONV} r = Relu (c) q = Add (r, t) y = Conv <group=8> (q, dw)",
    "no convolution after": f"{CONV} r = Relu (c) q = Add (r, t) y = Sigmoid (q)",
    "no convolution before": "r = Relu (x) q = Add (r, t) y = Conv <pads=[1,1,1,1]> (q, u)",
    "right after a layer": f"{CONV} q = Add (c, t) {NEXT}",
    "a constant over pixels": f"{CONV} r = Relu (c) q = Add (r, image) {NEXT}",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {body} }}", ConvolveAffine())


def test_channels_out_of_line_stay() -> None:
    head = """main (float[2,3,8,8] x) => (float[2,6,8,8] y)
    <float[6,3,1,1] w, float[6,1,3,3] v, float t = {0.25}>"""
    body = """{ c = Conv (x, w) r = Relu (c) q = Add (r, t)
                y = Conv <group=6, pads=[1,1,1,1]> (q, v) }"""
    assert_unchanged(head + body, ConvolveAffine())
