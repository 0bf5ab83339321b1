"""fuse-batch-norm: constants in a row."""

from __future__ import annotations

import pytest

from passes.fuse_batch_norm import FuseBatchNorm
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = """main (float[2,4,5,5] x) => (float[2,4,5,5] y)
<float[4,1,1] m, float[1,4,1,1] s_var, float[4,1,1] t, float two = {2.0}, float[5,5] image,
 float one = {1.0}, float[4] g, float[4] b, float[4] mean, float[4] var>"""
AFTER = "BatchNormalization <epsilon=0.0> (x, g, b, mean, var)"


@pytest.mark.parametrize(
    "body",
    [
        "a = Sub (x, m) c = Mul (a, s_var) y = Add (c, t)",
        "a = Sub (x, m) c = Div (a, s_var) d = Mul (c, t) y = Add (m, d)",
        "a = Mul (two, x) y = Add (a, one)",
        "a = Sub (m, x) y = Div (a, two)",
    ],
)
def test_affine(body: str) -> None:
    assert_rewrites(f"{HEAD} {{ {body} }}", f"{HEAD} {{ y = {AFTER} }}", FuseBatchNorm())


STAYS = {
    "one node": "y = Mul (x, s_var)",
    "read in the middle": "a = Sub (x, m) c = Mul (a, s_var) y = Add (c, a)",
    "a constant over pixels": "a = Mul (x, image) y = Add (a, m)",
    "the end of a GELU": """
        e = Erf (x) f = Add (e, one) p = Mul (x, f) h = Div (p, two) y = Add (h, m)""",
    "a divided constant": "a = Add (x, m) y = Div (s_var, a)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {body} }}", FuseBatchNorm())


@pytest.mark.parametrize(
    "signature", ["float[3,4] x) => (float[3,4] y", "float[N,C,5] x) => (float[N,C,5] y"]
)
def test_other_shapes_stay(signature: str) -> None:
    text = f"main ({signature}) <float two = {{2.0}}> {{ a = Mul (x, two) y = Add (a, two) }}"
    assert_unchanged(text, FuseBatchNorm())


def test_double_precision_stays() -> None:
    text = """main (double[2,4,5,5] x) => (double[2,4,5,5] y) <double two = {2.0}>
    { a = Mul (x, two) y = Add (a, two) }"""
    assert_unchanged(text, FuseBatchNorm())


def test_coefficients_that_overflow_stay() -> None:
    head = "main (float[2,4,5,5] x) => (float[2,4,5,5] y) <float large = {1e30}>"
    body = "a = Mul (x, large) b = Add (a, large) y = Mul (b, large)"
    assert_unchanged(f"{head} {{ {body} }}", FuseBatchNorm())
