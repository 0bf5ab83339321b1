"""merge-layers: two linear layers in a row."""

from __future__ import annotations

import pytest

from passes.merge_layers import MergeLayers
from tests.asserting import assert_rewrites, assert_unchanged


@pytest.mark.parametrize("attrs", ["", "<strides=[2,2]>", "<dilations=[2,2]>"])
@pytest.mark.parametrize("first_bias", ["", ", b1"])
@pytest.mark.parametrize("second_bias", ["", ", b2"])
def test_convolutions(attrs: str, first_bias: str, second_bias: str) -> None:
    head = """main (float[2,4,7,7] x) => (float[2,3,n,m] y)
    <float[9,4,1,1] w1, float[9] b1, float[3,9,3,3] w2, float[3] b2, float[3,4,3,3] w>"""
    before = f"{{ c = Conv (x, w1{first_bias}) y = Conv {attrs} (c, w2{second_bias}) }}"
    bias = ", b2" if first_bias or second_bias else ""
    assert_rewrites(head + before, head + f"{{ y = Conv {attrs} (x, w{bias}) }}", MergeLayers())


def test_without_a_bias_between_the_second_may_pad() -> None:
    head = """main (float[2,4,7,7] x) => (float[2,3,7,7] y)
    <float[9,4,1,1] w1, float[3,9,3,3] w2, float[3] b2, float[3,4,3,3] w>"""
    before = "{ c = Conv (x, w1) y = Conv <pads=[1,1,1,1]> (c, w2, b2) }"
    assert_rewrites(head + before, head + "{ y = Conv <pads=[1,1,1,1]> (x, w, b2) }", MergeLayers())


@pytest.mark.parametrize(
    ("first", "second", "after"),
    [
        ("Gemm (x, w1, b1)", "Gemm (c, w2, b2)", "Gemm (x, w, b2)"),
        ("Gemm <transB=1> (x, v1)", "Gemm <alpha=2.0> (c, w2)", "Gemm (x, w)"),
        ("Gemm (x, w1, b1)", "Gemm <transB=1> (c, v2)", "Gemm <transB=1> (x, v, b2)"),
        ("MatMul (x, w1)", "MatMul (c, w2)", "MatMul (x, w)"),
        ("MatMul (x, w1)", "Gemm (c, w2, b2)", "Gemm (x, w, b2)"),
        ("Gemm (x, w1, b1)", "MatMul (c, w2)", "Gemm (x, w, b2)"),
    ],
)
def test_matrices(first: str, second: str, after: str) -> None:
    head = """main (float[2,4] x) => (float[2,3] y)
    <float[4,9] w1, float[9,4] v1, float[9] b1, float[9,3] w2, float[3,9] v2, float[3] b2,
     float[4,3] w, float[3,4] v>"""
    before = f"{{ c = {first} y = {second} }}"
    assert_rewrites(head + before, head + f"{{ y = {after} }}", MergeLayers())


def test_matmul_over_a_sequence() -> None:
    head = """main (float[2,5,4] x) => (float[2,5,3] y)
    <float[4,9] w1, float[9,3] w2, float[4,3] w>"""
    before = "{ c = MatMul (x, w1) y = MatMul (c, w2) }"
    assert_rewrites(head + before, head + "{ y = MatMul (x, w) }", MergeLayers())


STAYS = {
    "a factorization": "c = Conv (x, narrow) y = Conv (c, wide)",
    "a bias before padding": "c = Conv (x, w1, b1) y = Conv <pads=[1,1,1,1]> (c, w2)",
    "an activation between": "c = Conv (x, w1) r = Relu (c) y = Conv (r, w2)",
    "read twice": "c = Conv (x, w1) d = Conv (c, w2) e = Conv (c, w2) y = Add (d, e)",
    "the second has groups": "c = Conv (x, w1) y = Conv <group=3> (c, grouped)",
    "the first has taps": "c = Conv <pads=[1,1,1,1]> (x, taps) y = Conv (c, w2)",
    "the first strides": "c = Conv <strides=[2,2]> (x, w1) y = Conv (c, w2)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    head = """main (float[2,8,6,6] x) => (float[2,3,n,m] y)
    <float[9,8,1,1] w1, float[9] b1, float[3,9,3,3] w2, float[2,8,1,1] narrow, float[8,2,1,1] wide,
     float[3,3,3,3] grouped, float[9,8,3,3] taps>"""
    assert_unchanged(f"{head} {{ {body} }}", MergeLayers())


def test_an_output_in_the_middle_stays() -> None:
    head = """main (float[2,4] x) => (float[2,9] c, float[2,3] y)
    <float[4,9] w1, float[9,3] w2>"""
    assert_unchanged(head + "{ c = MatMul (x, w1) y = MatMul (c, w2) }", MergeLayers())
