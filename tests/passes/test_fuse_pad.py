"""fuse-pad: which pads a layer can take over."""

from __future__ import annotations

import pytest

from passes.fuse_pad import FusePad
from tests.asserting import assert_rewrites, assert_unchanged

SIZES = "int64[8] p = {0, 0, 1, 0, 0, 0, 2, 1}"


def conv(body: str) -> str:
    return f"""main (float[2,4,6,6] x) => (float[2,6,n,m] y)
    <float[6,4,3,3] w, float[6,2,3,3] v, float[6,6,3,3] u, float zero = {{0.0}},
     float one = {{1.0}}, {SIZES}, int64[8] channels = {{0, 1, 0, 0, 0, 1, 0, 0}},
     int64[8] crop = {{0, 0, -1, 0, 0, 0, 0, 0}}>
    {{ {body} }}"""


@pytest.mark.parametrize("pad", ["Pad (x, p)", "Pad (x, p, zero)", 'Pad <mode="constant"> (x, p)'])
@pytest.mark.parametrize(
    ("layer", "fused"),
    [
        ("Conv (q, w)", "Conv <pads=[1,0,2,1]> (x, w)"),
        (
            "Conv <group=2, pads=[1,1,0,0], strides=[2,2]> (q, v)",
            "Conv <group=2, pads=[2,1,2,1], strides=[2,2]> (x, v)",
        ),
        ('Conv <auto_pad="VALID"> (q, w)', "Conv <pads=[1,0,2,1]> (x, w)"),
    ],
)
def test_conv(pad: str, layer: str, fused: str) -> None:
    assert_rewrites(conv(f"q = {pad} y = {layer}"), conv(f"y = {fused}"), FusePad())


@pytest.mark.parametrize("dims", [1, 3])
def test_conv_of_other_ranks(dims: int) -> None:
    sizes = f"{{0, 0, {', '.join('1' * dims)}, 0, 0, {', '.join('2' * dims)}}}"
    head = f"""main (float[2,4{",6" * dims}] x) => (float[2,6{",7" * dims}] y)
    <float[6,4{",3" * dims}] w, int64[{2 * (dims + 2)}] p = {sizes}>"""
    pads = [1] * dims + [2] * dims
    assert_rewrites(
        head + "{ q = Pad (x, p) y = Conv (q, w) }",
        head + f"{{ y = Conv <pads={pads}> (x, w) }}",
        FusePad(),
    )


def test_pads_as_attributes() -> None:
    head = "main (float[2,4,6,6] x) => (float[2,6,7,5] y) <float[6,4,3,3] w>"
    assert_rewrites(
        head + "{ q = Pad <pads=[0,0,1,0,0,0,2,1], value=0.0> (x) y = Conv (q, w) }",
        head + "{ y = Conv <pads=[1,0,2,1]> (x, w) }",
        FusePad(),
        opset=10,
    )


def test_pads_of_named_axes() -> None:
    head = """main (float[2,4,6,6] x) => (float[2,6,n,m] y)
    <float[6,4,3,3] w, int64[2] p = {1, 2}, int64[1] a = {-1}>"""
    assert_rewrites(
        head + "{ q = Pad (x, p, , a) y = Conv (q, w) }",
        head + "{ y = Conv <pads=[0,1,0,2]> (x, w) }",
        FusePad(),
        opset=18,
    )


def test_two_layers_read_one_pad() -> None:
    head = f"""main (float[2,4,6,6] x) => (float[2,6,n,m] y, float[2,6,n,m] z)
    <float[6,4,3,3] w, float[6,2,3,3] v, {SIZES}>"""
    before = "{ q = Pad (x, p) y = Conv (q, w) z = Conv <group=2> (q, v) }"
    after = """{ y = Conv <pads=[1,0,2,1]> (x, w)
                 z = Conv <group=2, pads=[1,0,2,1]> (x, v) }"""
    assert_rewrites(head + before, head + after, FusePad())


def pool(body: str) -> str:
    return f"""main (float[2,4,6,6] x) => (float[2,4,n,m] y)
    <float zero = {{0.0}}, float six = {{6.0}}, {SIZES}> {{ {body} }}"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "q = Pad (x, p) y = AveragePool <kernel_shape=[3,3]> (q)",
            "y = AveragePool <count_include_pad=1, kernel_shape=[3,3], pads=[1,0,2,1]> (x)",
        ),
        (
            "r = Relu (x) q = Pad (r, p) y = MaxPool <kernel_shape=[3,3]> (q)",
            "r = Relu (x) y = MaxPool <kernel_shape=[3,3], pads=[1,0,2,1]> (r)",
        ),
        (
            "r = Clip (x, zero, six) q = Pad (r, p) y = MaxPool <kernel_shape=[3,3]> (q)",
            "r = Clip (x, zero, six) y = MaxPool <kernel_shape=[3,3], pads=[1,0,2,1]> (r)",
        ),
        (
            'q = Pad <mode="edge"> (x, p) y = MaxPool <kernel_shape=[3,3], strides=[2,2]> (q)',
            "y = MaxPool <kernel_shape=[3,3], pads=[1,0,2,1], strides=[2,2]> (x)",
        ),
    ],
)
def test_pools(before: str, after: str) -> None:
    assert_rewrites(pool(before), pool(after), FusePad())


def test_max_pool_after_minus_infinity() -> None:
    head = """main (float[2,4,6,6] x) => (float[2,4,n,m] y)"""
    before = """{ q = Pad <pads=[0,0,1,1,0,0,1,1], value=-inf> (x)
                  y = MaxPool <kernel_shape=[3,3]> (q) }"""
    after = "{ y = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (x) }"
    assert_rewrites(head + before, head + after, FusePad(), opset=10)


STAYS = {
    "another value": "q = Pad (x, p, one) y = Conv (q, w)",
    "not constant": 'q = Pad <mode="reflect"> (x, p) y = Conv (q, w)',
    "channels": "q = Pad (x, channels) y = Conv (q, u)",
    "a crop": "q = Pad (x, crop) y = Conv (q, w)",
    "computed pads": "r = Abs (p) q = Pad (x, r) y = Conv (q, w)",
    "the layer pads by itself": 'q = Pad (x, p) y = Conv <auto_pad="SAME_UPPER"> (q, w)',
    "another reader": "q = Pad (x, p) c = Conv (q, w) m = ReduceMax (q) y = Mul (c, m)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_conv_stays(body: str) -> None:
    assert_unchanged(conv(body), FusePad())


def test_an_output_in_the_middle_stays() -> None:
    head = f"""main (float[2,4,6,6] x) => (float[2,4,9,7] q, float[2,6,7,5] y)
    <float[6,4,3,3] w, {SIZES}>"""
    assert_unchanged(head + "{ q = Pad (x, p) y = Conv (q, w) }", FusePad())


POOLS_STAY = {
    "an input may be negative": "q = Pad (x, p) y = MaxPool <kernel_shape=[3,3]> (q)",
    "clipped below zero": """
        r = Clip (x, , six) q = Pad (r, p) y = MaxPool <kernel_shape=[3,3]> (q)""",
    "the pool rounds up": """
        r = Relu (x) q = Pad (r, p) y = MaxPool <ceil_mode=1, kernel_shape=[3,3]> (q)""",
    "a spread window": """
        r = Relu (x) q = Pad (r, p) y = MaxPool <dilations=[2,2], kernel_shape=[3,3]> (q)""",
    "as large as the window": """
        r = Relu (x) q = Pad (r, p) y = MaxPool <kernel_shape=[2,2]> (q)""",
    "copies of the border, averaged": """
        q = Pad <mode="edge"> (x, p) y = AveragePool <kernel_shape=[3,3]> (q)""",
    "pads that are not counted": """
        q = Pad (x, p) y = AveragePool <kernel_shape=[3,3], pads=[1,1,0,0]> (q)""",
}


@pytest.mark.parametrize("body", POOLS_STAY.values(), ids=POOLS_STAY.keys())
def test_pools_stay(body: str) -> None:
    assert_unchanged(pool(body), FusePad())
