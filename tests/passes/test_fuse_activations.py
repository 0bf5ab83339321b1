"""fuse-activations: smooth activations in pieces."""

from __future__ import annotations

import pytest

from passes.fuse_activations import FuseActivations
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = """main (float[2,4,5] x, float[2,4,5] z) => (float[2,4,5] y)
<float one = {1.0}, float minus = {-1.0}, float two = {2.0}, int64[1] last = {-1}>"""

REWRITES = {
    "sigmoid": ("n = Neg (x) e = Exp (n) p = Add (e, one) y = Div (one, p)", "y = Sigmoid (x)"),
    "sigmoid by reciprocal": (
        "n = Mul (minus, x) e = Exp (n) p = Add (one, e) y = Reciprocal (p)",
        "y = Sigmoid (x)",
    ),
    "softmax": (
        """m = ReduceMax <axes=[-1]> (x) d = Sub (x, m) e = Exp (d) s = ReduceSum (e, last)
           y = Div (e, s)""",
        "y = Softmax <axis=2> (x)",
    ),
    "softmax without a maximum": (
        "e = Exp (x) s = ReduceSum (e, last) y = Div (e, s)",
        "y = Softmax <axis=2> (x)",
    ),
    "softmax by reciprocal": (
        "e = Exp (x) s = ReduceSum (e, last) r = Reciprocal (s) y = Mul (e, r)",
        "y = Softmax <axis=2> (x)",
    ),
    "mish": ("s = Softplus (x) t = Tanh (s) y = Mul (x, t)", "y = Mish (x)"),
    "quotient": ("r = Reciprocal (z) y = Mul (r, x)", "y = Div (x, z)"),
}


@pytest.mark.parametrize(("before", "after"), REWRITES.values(), ids=REWRITES.keys())
def test_rewrites(before: str, after: str) -> None:
    opset = 18 if "Mish" in after else 17
    if opset == 18:
        before = before.replace("<axes=[-1]> (x)", "(x, last)")
    assert_rewrites(
        f"{HEAD} {{ {before} }}", f"{HEAD} {{ {after} }}", FuseActivations(), opset=opset
    )


@pytest.mark.parametrize("axis", [1, 2])
def test_older_softmax_runs_along_the_last_axis(axis: int) -> None:
    body = f"e = Exp (x) s = ReduceSum <axes=[{axis}]> (e) y = Div (e, s)"
    before = f"{HEAD} {{ {body} }}"
    if axis == 1:
        assert_unchanged(before, FuseActivations(), opset=11)
    else:
        after = f"{HEAD} {{ y = Softmax <axis=2> (x) }}"
        assert_rewrites(before, after, FuseActivations(), opset=11)


STAYS = {
    "another term": "n = Neg (x) e = Exp (n) p = Add (e, two) y = Div (one, p)",
    "another sign": "e = Exp (x) p = Add (e, one) y = Div (one, p)",
    "another power": "e = Exp (x) f = Exp (z) s = ReduceSum (e, last) y = Div (f, s)",
    "sums that are dropped": "e = Exp (x) s = ReduceSum <keepdims=0> (e, last) y = Div (e, s)",
    "mish of another": "s = Softplus (x) t = Tanh (s) y = Mul (z, t)",
    "a root": "q = Sqrt (z) r = Reciprocal (q) y = Mul (x, r)",
    "read twice": "r = Reciprocal (z) m = Mul (r, x) y = Add (m, r)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    square = "(float[4,4,4] x, float[4,4,4] z) => (float[4,4,4] y)"
    head = HEAD.replace("(float[2,4,5] x, float[2,4,5] z) => (float[2,4,5] y)", square)
    assert_unchanged(f"{head} {{ {body} }}", FuseActivations(), opset=18)


def test_a_numerator_that_widens_the_result_stays() -> None:
    head = "main (float[1] x) => (float[3] y) <float one = {1.0}, float[3] ones = {1, 1, 1}>"
    body = "n = Neg (x) e = Exp (n) p = Add (e, one) y = Div (ones, p)"
    assert_unchanged(f"{head} {{ {body} }}", FuseActivations())
