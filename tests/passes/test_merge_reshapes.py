"""merge-reshapes: chains that only name axes anew, or move them and back."""

from __future__ import annotations

import pytest

from passes.merge_reshapes import MergeReshapes
from tests.asserting import assert_rewrites, assert_unchanged

CONSTANTS = """<int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] last = {-1}, int64[2] i01 = {0,1},
int64[2] i03 = {0,3}, int64[2] flat = {0,-1}, int64[3] three = {0,4,6}, int64[3] back = {0,2,12}>"""


def network(lines: str, signature: str = "float[N,2,3,4] x", rank: int = 4) -> str:
    output = f"float[{','.join('abcdef'[:rank])}] y"
    return f"g ({signature}) => ({output}) {CONSTANTS} {{ a = Neg(x) {lines} }}"


@pytest.mark.parametrize(
    ("before", "after", "rank"),
    [
        ("b = Reshape(a, three) y = Reshape(b, flat)", "y = Reshape(a, flat)", 2),
        ("b = Flatten(a) y = Reshape(b, three)", "y = Reshape(a, three)", 3),
        ("b = Reshape(a, three) y = Flatten(b)", "y = Reshape(a, flat)", 2),
        ("b = Unsqueeze(a, i1) y = Reshape(b, back)", "y = Reshape(a, back)", 3),
        ("b = Reshape(a, back) c = Flatten(b) y = Reshape(c, three)", "y = Reshape(a, three)", 3),
    ],
)
def test_reshapes(before: str, after: str, rank: int) -> None:
    assert_rewrites(network(before, rank=rank), network(after, rank=rank), MergeReshapes())


@pytest.mark.parametrize(
    ("before", "after", "rank"),
    [
        ("b = Unsqueeze(a, i0) y = Unsqueeze(b, i0)", "y = Unsqueeze(a, i01)", 4),
        ("b = Unsqueeze(a, last) y = Unsqueeze(b, i0)", "y = Unsqueeze(a, i03)", 4),
        ("b = Unsqueeze(a, i01) y = Squeeze(b, i0)", "y = Unsqueeze(a, i0)", 3),
        ("b = Unsqueeze(a, i1) c = Squeeze(b, i1) y = Exp(c)", "y = Exp(a)", 2),
    ],
)
def test_squeezes_whatever_the_sizes(before: str, after: str, rank: int) -> None:
    dynamic = "float[N,M] x"
    assert_rewrites(network(before, dynamic, rank), network(after, dynamic, rank), MergeReshapes())


def test_squeezes_with_axes_as_attributes() -> None:
    before = "b = Unsqueeze<axes=[0]>(a) y = Unsqueeze<axes=[3]>(b)"
    after = "y = Unsqueeze<axes=[0,3]>(a)"
    dynamic = "float[N,M] x"
    assert_rewrites(network(before, dynamic), network(after, dynamic), MergeReshapes(), opset=11)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("b = Transpose<perm=[0,2,3,1]>(a) y = Transpose<perm=[0,3,1,2]>(b)", "y = Identity(a)"),
        (
            "b = Transpose<perm=[1,0,2,3]>(a) y = Transpose<perm=[0,2,1,3]>(b)",
            "y = Transpose<perm=[1,2,0,3]>(a)",
        ),
        ("b = Transpose(a) c = Transpose(b) y = Exp(c)", "y = Exp(a)"),
    ],
)
def test_transposes(before: str, after: str) -> None:
    after = after.replace("a = Neg(x) y = Identity(a)", "y = Neg(x)")
    expected = network(after).replace("a = Neg(x) y = Identity(a)", "y = Neg(x)")
    assert_rewrites(network(before), expected, MergeReshapes())


@pytest.mark.parametrize(
    ("signature", "line", "after", "rank"),
    [
        ("float[N,5,1,1] x", "y = Transpose<perm=[0,2,3,1]>(a)", "y = Reshape(a, t)", 4),
        ("float[1,7,3] x", "y = Transpose<perm=[1,0,2]>(a)", "y = Reshape(a, t)", 3),
        (
            "float[N,5,1,1] x",
            "b = Transpose<perm=[0,2,3,1]>(a) y = Flatten(b)",
            "y = Reshape(a, t)",
            2,
        ),
    ],
)
def test_sizes_of_one_move_no_data(signature: str, line: str, after: str, rank: int) -> None:
    target = {"4": "{0,1,1,5}", "3": "{7,1,3}", "2": "{0,5}"}[str(rank)]
    expected = network(after, signature, rank)
    expected = expected.replace("<int64[1] i0", f"<int64[{rank}] t = {target}, int64[1] i0")
    assert_rewrites(network(line, signature, rank), expected, MergeReshapes())


@pytest.mark.parametrize(
    ("lines", "signature", "rank"),
    [
        ("y = Transpose<perm=[0,2,1,3]>(a)", "float[N,2,3,4] x", 4),
        ("b = Exp(a) y = Reshape(b, three)", "float[N,2,3,4] x", 3),
        ("b = Flatten<axis=2>(a) y = Unsqueeze(b, last)", "float[N,M,K] x", 3),
    ],
)
def test_others_stay(lines: str, signature: str, rank: int) -> None:
    assert_unchanged(network(lines, signature, rank), MergeReshapes())


def test_a_chain_between_input_and_output_keeps_both_names() -> None:
    text = """g (float[2,3] x) => (float[2,3] y)
    { b = Transpose<perm=[1,0]>(x) y = Transpose<perm=[1,0]>(b) }"""
    after = "g (float[2,3] x) => (float[2,3] y) { y = Identity(x) }"
    assert_rewrites(text, after, MergeReshapes())
