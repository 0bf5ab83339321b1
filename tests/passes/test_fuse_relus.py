"""fuse-relus: rectifiers in pieces."""

from __future__ import annotations

import pytest

from passes.fuse_relus import FuseRelus
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = """main (float[2,4,5,5] x) => (float[2,4,5,5] y)
<float zero = {0.0}, float six = {6.0}, float low = {-1.0}, float tenth = {0.1},
 float ten = {10.0}, float[4,1,1] each>"""

REWRITES = {
    "max is relu": ("y = Max (x, zero)", "y = Relu (x)"),
    "clip is relu": ("y = Clip (x, zero)", "y = Relu (x)"),
    "min of max is clip": ("m = Max (x, low) y = Min (m, six)", "y = Clip (x, low, six)"),
    "max of min is clip": ("m = Min (x, six) y = Max (zero, m)", "y = Clip (x, zero, six)"),
    "min of relu is clip": ("m = Relu (x) y = Min (m, six)", "y = Clip (x, zero, six)"),
    "max of relu is relu": ("m = Relu (x) y = Max (m, low)", "y = Relu (x)"),
    "leaky": ("m = Mul (x, tenth) y = Max (x, m)", "y = LeakyRelu <alpha = 0.1> (x)"),
    "leaky by division": ("m = Div (x, ten) y = Max (m, x)", "y = LeakyRelu <alpha = 0.1> (x)"),
    "prelu by sub": (
        "p = Relu (x) n = Neg (x) r = Relu (n) m = Mul (r, each) y = Sub (p, m)",
        "y = PRelu (x, each)",
    ),
    "prelu by add": (
        "p = Relu (x) n = Neg (x) r = Relu (n) m = Mul (each, r) y = Add (p, m)",
        "y = PRelu (x, each)",
    ),
}


@pytest.mark.parametrize(("before", "after"), REWRITES.values(), ids=REWRITES.keys())
def test_rewrites(before: str, after: str) -> None:
    assert_rewrites(f"{HEAD} {{ {before} }}", f"{HEAD} {{ {after} }}", FuseRelus())


def test_older_clip_has_attributes() -> None:
    assert_rewrites(
        HEAD + "{ m = Max (x, low) y = Min (m, six) }",
        HEAD + "{ y = Clip <max = 6.0, min = -1.0> (x) }",
        FuseRelus(),
        opset=9,
    )


STAYS = {
    "relu": "y = Relu (x)",
    "a bound per channel": "m = Max (x, each) y = Min (m, six)",
    "max alone": "y = Max (x, low)",
    "a slope above one": "m = Mul (x, six) y = Max (x, m)",
    "the middle is read elsewhere": "m = Max (x, low) k = Min (m, six) y = Add (m, k)",
    "another input": "m = Mul (x, tenth) n = Neg (x) y = Max (n, m)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {body} }}", FuseRelus())


def test_integers_stay() -> None:
    head = "main (int32[3] x) => (int32[3] y) <int32 zero = {0}>"
    assert_unchanged(head + "{ y = Max (x, zero) }", FuseRelus())
