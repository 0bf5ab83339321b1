"""fold-affine: constants that fold into layers, and those that stay."""

from __future__ import annotations

import pytest

from passes.fold_affine import FoldAffine
from tests.asserting import assert_rewrites, assert_unchanged

SHAPES = [
    "float k_var = {0.5}",
    "float[1] k_var = {3.0}",
    "float[6,1,1] k_var",
    "float[1,6,1,1] k_var",
]
OPERATIONS = ["Mul (c, k_var)", "Mul (k_var, c)", "Add (c, k_var)", "Add (k_var, c)"]
OPERATIONS += ["Sub (c, k_var)", "Sub (k_var, c)", "Div (c, k_var)"]


def needs_bias(operation: str) -> bool:
    return operation[:3] in ("Add", "Sub")


@pytest.mark.parametrize("constant", SHAPES)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("given", "group"), [("x, w", 1), ("x, w, b", 2)])
def test_after_conv(constant: str, operation: str, given: str, group: int) -> None:
    head = f"""main (float[2,4,5,5] x) => (float[2,6,3,3] y)
    <float[6,{4 // group},3,3] w, float[6] b, {constant}>"""
    before = f"{{ c = Conv <group={group}> ({given}) y = {operation} }}"
    after_inputs = "x, w, b" if "b" in given or needs_bias(operation) else "x, w"
    after = f"{{ y = Conv <group={group}> ({after_inputs}) }}"
    assert_rewrites(head + before, head + after, FoldAffine())


@pytest.mark.parametrize("dims", [1, 3])
def test_after_conv_of_other_ranks(dims: int) -> None:
    ones, taps = ",1" * dims, ",3" * dims
    head = f"""main (float[2,4{",5" * dims}] x) => (float[2,6{taps}] y)
    <float[6,4{taps}] w, float[6{ones}] s>"""
    assert_rewrites(
        head + "{ c = Conv (x, w) y = Mul (c, s) }", head + "{ y = Conv (x, w) }", FoldAffine()
    )


def test_after_conv_transpose() -> None:
    head = """main (float[2,4,5,5] x) => (float[2,6,7,7] y)
    <float[4,3,3,3] w, float[6] b, float[6,1,1] s, float[6,1,1] t>"""
    before = "{ c = ConvTranspose <group=2> (x, w) d = Mul (c, s) y = Add (d, t) }"
    assert_rewrites(head + before, head + "{ y = ConvTranspose <group=2> (x, w, b) }", FoldAffine())


@pytest.mark.parametrize("layer", ["Gemm (x, w)", "Gemm <alpha=2.0> (x, w, b)"])
def test_after_gemm(layer: str) -> None:
    head = "main (float[3,4] x) => (float[3,6] y) <float[4,6] w, float[6] b, float[6] s>"
    before = f"{{ c = {layer} d = Mul (c, s) y = Add (d, s) }}"
    assert_rewrites(head + before, head + "{ y = Gemm (x, w, b) }", FoldAffine())


def test_factor_after_matmul_of_any_rank() -> None:
    head = "main (float[2,3,4] x) => (float[2,3,6] y) <float[4,6] w, float[6] s>"
    assert_rewrites(
        head + "{ c = MatMul (x, w) y = Div (c, s) }", head + "{ y = MatMul (x, w) }", FoldAffine()
    )


@pytest.mark.parametrize("constant", ["float[4,1,1] s", "float s = {0.017}"])
@pytest.mark.parametrize("group", [1, 2])
def test_factor_before_padded_conv(constant: str, group: int) -> None:
    head = f"""main (float[2,4,5,5] x) => (float[2,6,5,5] y)
    <float[6,{4 // group},3,3] w, {constant}>"""
    layer = f"Conv <group={group}, pads=[1,1,1,1]>"
    assert_rewrites(
        head + f"{{ a = Mul (x, s) y = {layer} (a, w) }}",
        head + f"{{ y = {layer} (x, w) }}",
        FoldAffine(),
    )


def test_factor_and_offset_before_several_unpadded_layers() -> None:
    head = """main (float[2,4,5,5] x) => (float[2,6,3,3] y, float[2,2,5,5] z)
    <float[6,4,3,3] w, float[2,4,1,1] v, float[6] b, float[2] d, float[4,1,1] s, float t = {2.0}>"""
    before = "{ a = Mul (x, s) m = Sub (t, a) y = Conv (m, w) z = Conv (m, v, d) }"
    assert_rewrites(head + before, head + "{ y = Conv (x, w, b) z = Conv (x, v, d) }", FoldAffine())


def test_factor_before_conv_transpose_and_gemm() -> None:
    head = """main (float[2,4,5,5] x) => (float[2,6,7,7] y) <float[4,6,3,3] w, float[4,1,1] s>"""
    assert_rewrites(
        head + "{ a = Mul (x, s) y = ConvTranspose (a, w) }",
        head + "{ y = ConvTranspose (x, w) }",
        FoldAffine(),
    )
    head = "main (float[3,4] x) => (float[3,6] y) <float[4,6] w, float[4] s, float[6] b>"
    before = "{ a = Sub (x, s) c = Div (a, s) y = Gemm (c, w) }"
    assert_rewrites(head + before, head + "{ y = Gemm (x, w, b) }", FoldAffine())


def test_into_batch_norm() -> None:
    head = """main (float[2,4,5,5] x) => (float[2,4,5,5] y)
    <float[4] gamma, float[4] beta, float[4] mean, float[4] var, float[4,1,1] s, float t = {2.0}>"""
    before = """{ n = BatchNormalization (x, gamma, beta, mean, var)
                  a = Mul (n, s) y = Add (a, t) }"""
    after = "{ y = BatchNormalization (x, gamma, beta, mean, var) }"
    assert_rewrites(head + before, head + after, FoldAffine())


STAYS = {
    "an offset before padding": "a = Add (x, s) y = Conv <pads=[1,1,1,1]> (a, w)",
    "a constant over pixels": "c = Conv <pads=[1,1,1,1]> (x, w) y = Mul (c, image)",
    "the layer's result is read twice": """
        c = Conv <pads=[1,1,1,1]> (x, w) d = Mul (c, s) y = Add (c, d)""",
    "a divided constant": "c = Conv <pads=[1,1,1,1]> (x, w) y = Div (s, c)",
    "shared weights": """
        c = Conv <pads=[1,1,1,1]> (x, w) r = Relu (c)
        d = Conv <pads=[1,1,1,1]> (r, w) y = Mul (d, s)""",
    "another reader": "a = Mul (x, s) c = Conv <pads=[1,1,1,1]> (a, w) y = Add (a, c)",
    "a pair of operands": "c = Conv <pads=[1,1,1,1]> (x, w) y = Mul (c, x)",
    "the end of a hard swish": """
        c = Conv <pads=[1,1,1,1]> (x, w) a = Add (c, three) k = Clip (a, zero, six) m = Mul (c, k)
        d = Div (m, six) y = Conv <pads=[1,1,1,1]> (d, v)""",
    "the end of a GELU": """
        c = Conv <pads=[1,1,1,1]> (x, w) q = Div (c, three) e = Erf (q) f = Add (e, one)
        m = Mul (c, f) d = Mul (m, half) y = Conv <pads=[1,1,1,1]> (d, v)""",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    head = """main (float[2,4,5,5] x) => (float[2,4,5,5] y)
    <float[4,4,3,3] w, float[4,4,3,3] v, float[4,1,1] s, float[5,5] image, float three = {3.0},
     float zero = {0.0}, float six = {6.0}, float one = {1.0}, float half = {0.5}>"""
    assert_unchanged(f"{head} {{ {body} }}", FoldAffine())


def test_a_constant_that_widens_the_result_stays() -> None:
    head = "main (float[2,4,5,5] x) => (float[2,6,3,3] y) <float[1,4,3,3] w, float[6,1,1] s>"
    assert_unchanged(head + "{ c = Conv (x, w) y = Mul (c, s) }", FoldAffine())
    head = "main (float[2,4,5,5] x) => (float[1,2,6,3,3] y) <float[6,4,3,3] w, float[1,1,1,1,1] s>"
    assert_unchanged(head + "{ c = Conv (x, w) y = Mul (c, s) }", FoldAffine())


def test_an_unknown_rank_stays() -> None:
    head = "main (float[] x) => (float[] y) <float[4,6] w, float[6] t>"
    assert_unchanged(head + "{ c = MatMul (x, w) y = Mul (c, t) }", FoldAffine())


def test_division_by_zero_is_refused() -> None:
    head = "main (float[2,4,5,5] x) => (float[2,6,3,3] y) <float[6,4,3,3] w, float s = {0.0}>"
    assert_unchanged(head + "{ c = Conv (x, w) y = Div (c, s) }", FoldAffine())


def test_an_output_in_the_middle_stays() -> None:
    head = """main (float[2,4,5,5] x) => (float[2,6,3,3] c, float[2,6,3,3] y)
    <float[6,4,3,3] w, float s = {2.0}>"""
    assert_unchanged(head + "{ c = Conv (x, w) y = Mul (c, s) }", FoldAffine())
