"""fold-shuffle: shuffles and slices of them."""

from __future__ import annotations

import pytest

from passes.fold_shuffle import FoldShuffle
from tests.asserting import assert_rewrites, assert_unchanged

CONSTANTS = """int64[5] split = {-1, 2, 3, 4, 4}, int64[4] join = {-1, 6, 4, 4},
 int64[5] other = {-1, 2, 3, 2, 8}, int64[4] wide = {-1, 6, 2, 8},
 int64[1] zero = {0}, int64[1] three = {3}, int64[1] big = {9223372036854775807},
 int64[1] one = {1}, int64[1] two = {2}, int64[6] index, int64[3] low, int64[3] high"""
SHUFFLE = "a = Reshape (x, split) b = Transpose <perm=[0,2,1,3,4]> (a) s = Reshape (b, join)"

OLD = "{} = Slice <axes=[1], starts=[{}], ends=[{}]> (s)"


def one(body: str, size: str = "N,6,4,4") -> str:
    return f"main (float[{size}] x) => (float[a,b,c,d] y) <{CONSTANTS}> {{ {body} }}"


def two(body: str) -> str:
    outputs = "float[a,b,c,d] y, float[a,e,c,d] z"
    return f"main (float[N,6,4,4] x) => ({outputs}) <{CONSTANTS}> {{ {body} }}"


def test_shuffle() -> None:
    after = "s = Gather <axis=1> (x, index) y = Relu (s)"
    assert_rewrites(one(f"{SHUFFLE} y = Relu (s)"), one(after), FoldShuffle())


def test_shuffle_of_sequences() -> None:
    head = """main (float[2,6,5] x) => (float[2,6,5] y)
    <int64[4] split = {2, 3, 2, 5}, int64[3] join = {2, 6, 5}, int64[6] index>"""
    before = "{ a = Reshape (x, split) b = Transpose <perm=[0,2,1,3]> (a) y = Reshape (b, join) }"
    assert_rewrites(head + before, head + "{ y = Gather <axis=1> (x, index) }", FoldShuffle())


@pytest.mark.parametrize(
    ("cuts", "opset"),
    [
        ("y = Slice (s, zero, three, one) z = Slice (s, three, big, one)", 17),
        ("y = Slice (s, zero, three, one, one) z = Slice (s, three, big, one)", 17),
        (f"{OLD.format('y', 0, 3)} {OLD.format('z', 3, 6)}", 9),
        ("y, z = Split <axis=1> (s)", 17),
    ],
)
def test_parts(cuts: str, opset: int) -> None:
    after = "y = Gather <axis=1> (x, low) z = Gather <axis=1> (x, high)"
    assert_rewrites(two(f"{SHUFFLE} {cuts}"), two(after), FoldShuffle(), opset=opset)


TURN = "b = Transpose <perm=[0,2,1,3,4]> (a)"

STAYS = {
    "pixels change places": """
        a = Reshape (x, split) b = Transpose <perm=[0,1,2,4,3]> (a) y = Reshape (b, join)""",
    "pixels are joined anew": f"a = Reshape (x, other) {TURN} y = Reshape (b, join)",
    "another shape": f"a = Reshape (x, split) {TURN} y = Reshape (b, wide)",
    "the middle is read elsewhere": f"{SHUFFLE} r = ReduceMax (b) y = Add (s, r)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(one(body), FoldShuffle())


def test_unknown_sizes_stay() -> None:
    text = one(f"{SHUFFLE} y = Relu (s)", size="N,6,H,W")
    assert_unchanged(text.replace("{-1, 2, 3, 4, 4}", "{1, 2, 3, -1, 4}"), FoldShuffle())


@pytest.mark.parametrize(
    "cuts",
    [
        "y = Slice (s, zero, three, one) z = Relu (s)",
        "y = Slice (s, zero, three, two) z = Slice (s, three, big, two)",
        "y = Slice (s, zero, big, one) z = Slice (s, three, big, one)",
        "y = Slice (s, zero, three, one, two) z = Slice (s, three, big, one, two)",
    ],
)
def test_other_cuts_stay(cuts: str) -> None:
    text = two(f"s = Gather <axis=1> (x, index) {cuts}")
    assert_unchanged(text.replace("[6] index", "[6] index = {5,4,3,2,1,0}"), FoldShuffle())
