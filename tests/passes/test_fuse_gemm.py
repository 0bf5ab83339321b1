"""fuse-gemm: products of matrices, their biases and transposes."""

from __future__ import annotations

import pytest

from passes.fuse_gemm import FuseGemm
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = """main (float[3,4] x, float[6,4] z) => (float[3,6] y)
<float[4,6] w, float[3,4] u, float[6] b, float[1,6] r, float one = {2.0}, float[3,1] c>"""


@pytest.mark.parametrize("constant", ["b", "r", "one"])
@pytest.mark.parametrize("swapped", [False, True])
def test_bias(constant: str, swapped: bool) -> None:
    operands = f"{constant}, p" if swapped else f"p, {constant}"
    assert_rewrites(
        HEAD + f"{{ p = MatMul (x, w) y = Add ({operands}) }}",
        HEAD + f"{{ y = Gemm (x, w, {constant}) }}",
        FuseGemm(),
    )


TRANSPOSES = {
    "second": ("t = Transpose (z) y = MatMul (x, t)", "y = Gemm <transB=1> (x, z)"),
    "with a bias": (
        "t = Transpose <perm=[1,0]> (z) p = MatMul (x, t) y = Add (p, b)",
        "y = Gemm <transB=1> (x, z, b)",
    ),
    "of a gemm": ("t = Transpose (z) y = Gemm (x, t, b)", "y = Gemm <transB=1> (x, z, b)"),
    "back again": (
        "t = Transpose (z) y = Gemm <alpha=2.0, transA=1> (t, w)",
        "y = Gemm <alpha=2.0> (z, w)",
    ),
}


@pytest.mark.parametrize(("before", "after"), TRANSPOSES.values(), ids=TRANSPOSES.keys())
def test_transposes(before: str, after: str) -> None:
    head = HEAD.replace("[3,6] y", "[6,6] y") if "transA" in before else HEAD
    assert_rewrites(f"{head} {{ {before} }}", f"{head} {{ {after} }}", FuseGemm())


STAYS = {
    "read twice": "p = MatMul (x, w) q = Add (p, b) y = Mul (p, q)",
    "a column": "p = MatMul (x, w) y = Add (p, c)",
    "a computed bias": "n = Neg (b) p = MatMul (x, w) y = Add (p, n)",
    "a transpose that others read": """
        t = Transpose (z) p = MatMul (x, t) q = MatMul (u, t) y = Add (p, q)""",
    "a gemm that has a bias": "p = Gemm (x, w, r) y = Add (p, b)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {body} }}", FuseGemm())


def test_more_dimensions_stay() -> None:
    head = "main (float[2,3,4] x) => (float[2,3,6] y) <float[4,6] w, float[6] b>"
    assert_unchanged(head + "{ p = MatMul (x, w) y = Add (p, b) }", FuseGemm())


def test_unknown_ranks_stay() -> None:
    head = "main (float[] x) => (float[] y) <float[4,6] w, float[6] b>"
    assert_unchanged(head + "{ p = MatMul (x, w) y = Add (p, b) }", FuseGemm())


def test_integers_stay() -> None:
    head = "main (int32[3,4] x) => (int32[3,6] y) <int32[4,6] w, int32[6] b>"
    assert_unchanged(head + "{ p = MatMul (x, w) y = Add (p, b) }", FuseGemm())


def test_a_bias_that_widens_the_product_stays() -> None:
    head = "main (float[3,4] x) => (float[3,6] y) <float[4,1] w, float[6] b>"
    assert_unchanged(head + "{ p = MatMul (x, w) y = Add (p, b) }", FuseGemm())


def test_an_output_in_the_middle_stays() -> None:
    head = "main (float[3,4] x) => (float[3,6] p, float[3,6] y) <float[4,6] w, float[6] b>"
    assert_unchanged(head + "{ p = MatMul (x, w) y = Add (p, b) }", FuseGemm())


def test_a_transpose_that_moves_nothing_stays() -> None:
    head = "main (float[4,4] x) => (float[4,6] y) <float[4,6] w>"
    assert_unchanged(head + "{ t = Transpose <perm=[0,1]> (x) y = MatMul (t, w) }", FuseGemm())
