"""fold-batch-norm: what folds where, and what stays."""

from __future__ import annotations

import pytest

from passes.fold_batch_norm import FoldBatchNorm
from tests.asserting import assert_rewrites, assert_unchanged

NORM = "float[{c}] gamma, float[{c}] beta, float[{c}] mean, float[{c}] var"


def norm(channels: int) -> str:
    return NORM.format(c=channels)


def conv(bias: bool, group: int, dims: int, tail: str, extra: str = "") -> str:
    spatial = ",".join("7" * dims)
    taps = ",".join("3" * dims)
    given = "x, w, b" if bias else "x, w"
    return f"""
    main (float[2,4,{spatial}] x) => (float[2,6,{",".join("5" * dims)}] y)
    <float[6,{4 // group},{taps}] w, float[6] b, {norm(6)} {extra}>
    {{ {tail.format(conv=f"Conv <group={group}> ({given})")} }}
    """


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_into_conv_before(bias: bool, group: int, dims: int) -> None:
    before = "c = {conv} y = BatchNormalization (c, gamma, beta, mean, var)"
    after = f"y = Conv <group={group}> (x, w, b)"
    assert_rewrites(
        conv(bias, group, dims, before), conv(True, group, dims, after), FoldBatchNorm()
    )


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("group", [1, 2])
def test_into_conv_transpose_before(bias: str, group: int) -> None:
    head = f"""main (float[2,4,5,5] x) => (float[2,6,11,11] y)
    <float[4,{6 // group},3,3] w, float[6] b, {norm(6)}>"""
    before = f"""{{ c = ConvTranspose <group={group}, strides=[2,2]> (x, w{bias})
                   y = BatchNormalization (c, gamma, beta, mean, var) }}"""
    after = f"{{ y = ConvTranspose <group={group}, strides=[2,2]> (x, w, b) }}"
    assert_rewrites(head + before, head + after, FoldBatchNorm())


@pytest.mark.parametrize("attrs", ["", "<transB=1>", "<alpha=0.5, beta=2.0>"])
@pytest.mark.parametrize("bias", ["", ", b"])
def test_into_gemm_before(attrs: str, bias: str) -> None:
    weight = "float[6,4] w" if "transB" in attrs else "float[4,6] w"
    head = f"main (float[3,4] x) => (float[3,6] y) <{weight}, float[6] b, {norm(6)}>"
    before = f"""{{ c = Gemm {attrs} (x, w{bias})
                   y = BatchNormalization (c, gamma, beta, mean, var) }}"""
    after = f"{{ y = Gemm {attrs if 'trans' in attrs else ''} (x, w, b) }}"
    assert_rewrites(head + before, head + after, FoldBatchNorm())


def test_into_matmul_before() -> None:
    head = f"main (float[3,4] x) => (float[3,6] y) <float[4,6] w, float[6] b, {norm(6)}>"
    before = "{ c = MatMul (x, w) y = BatchNormalization (c, gamma, beta, mean, var) }"
    assert_rewrites(head + before, head + "{ y = Gemm (x, w, b) }", FoldBatchNorm())


@pytest.mark.parametrize("group", [1, 2])
def test_into_unpadded_convs_after(group: int) -> None:
    head = f"""main (float[2,4,6,6] x) => (float[2,6,4,4] y, float[2,6,6,6] z)
    <float[6,{4 // group},3,3] w, float[6,4,1,1] v, float[6] b, float[6] d, {norm(4)}>"""
    before = f"""{{ n = BatchNormalization (x, gamma, beta, mean, var)
                   y = Conv <group={group}> (n, w) z = Conv (n, v, d) }}"""
    after = f"{{ y = Conv <group={group}> (x, w, b) z = Conv (x, v, d) }}"
    assert_rewrites(head + before, head + after, FoldBatchNorm())


@pytest.mark.parametrize("attrs", ["", "<transB=1>"])
def test_into_gemm_after(attrs: str) -> None:
    weight = "float[6,4] w" if attrs else "float[4,6] w"
    head = f"main (float[3,4] x) => (float[3,6] y) <{weight}, float[6] b, {norm(4)}>"
    before = f"{{ n = BatchNormalization (x, gamma, beta, mean, var) y = Gemm {attrs} (n, w) }}"
    assert_rewrites(head + before, head + f"{{ y = Gemm {attrs} (x, w, b) }}", FoldBatchNorm())


STAYS = {
    "the next layer pads": """
        n = BatchNormalization (x, gamma, beta, mean, var)
        y = Conv <pads=[1,1,1,1]> (n, w)""",
    "the next layer pads by itself": """
        n = BatchNormalization (x, gamma, beta, mean, var)
        y = Conv <auto_pad="SAME_UPPER"> (n, w)""",
    "the result before it is read elsewhere": """
        c = Conv <pads=[1,1,1,1]> (x, w)
        n = BatchNormalization (c, gamma, beta, mean, var)
        y = Add (n, c)""",
    "the weight is shared": """
        c = Conv <pads=[1,1,1,1]> (x, w)
        r = Relu (c)
        d = Conv <pads=[1,1,1,1]> (r, w)
        y = BatchNormalization (d, gamma, beta, mean, var)""",
    "one of its readers is no layer": """
        n = BatchNormalization (x, gamma, beta, mean, var)
        c = Conv <auto_pad="VALID"> (n, one)
        y = Add (n, c)""",
    "it follows an Add": """
        a = Add (x, x)
        n = BatchNormalization (a, gamma, beta, mean, var)
        y = Relu (n)""",
    "the layer's weight is computed": """
        v = Relu (w)
        c = Conv <pads=[1,1,1,1]> (x, v)
        y = BatchNormalization (c, gamma, beta, mean, var)""",
    "its statistics are computed": """
        c = Conv <pads=[1,1,1,1]> (x, w)
        g = Relu (gamma)
        y = BatchNormalization (c, g, beta, mean, var)""",
    "it trains": """
        c = Conv <pads=[1,1,1,1]> (x, w)
        y, m, v = BatchNormalization <training_mode=1> (c, gamma, beta, mean, var)""",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    head = f"""main (float[2,4,6,6] x) => (float[2,4,6,6] y)
    <float[4,4,3,3] w, float[4,4,1,1] one, {norm(4)}>"""
    assert_unchanged(f"{head} {{ {body} }}", FoldBatchNorm())


def test_stays_behind_an_output() -> None:
    head = f"""main (float[2,4,6,6] x) => (float[2,4,4,4] c, float[2,4,4,4] y)
    <float[4,4,3,3] w, {norm(4)}>"""
    body = "{ c = Conv (x, w) y = BatchNormalization (c, gamma, beta, mean, var) }"
    assert_unchanged(head + body, FoldBatchNorm())


def test_matmul_over_a_sequence_has_other_channels() -> None:
    head = f"main (float[2,3,4] x) => (float[2,3,6] y) <float[4,6] w, {norm(3)}>"
    body = "{ c = MatMul (x, w) y = BatchNormalization (c, gamma, beta, mean, var) }"
    assert_unchanged(head + body, FoldBatchNorm())


def test_a_variance_without_a_root_is_refused() -> None:
    head = """main (float[2,4,6,6] x) => (float[2,4,4,4] y)
    <float[4,4,3,3] w, float[4] gamma, float[4] beta, float[4] mean,
     float[4] v = {-1.0, 1.0, 1.0, 1.0}>"""
    body = "{ c = Conv (x, w) y = BatchNormalization (c, gamma, beta, mean, v) }"
    assert_unchanged(head + body, FoldBatchNorm())
