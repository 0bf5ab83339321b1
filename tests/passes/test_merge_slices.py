"""merge-slices: windows of windows, axes in parts, and Split with Concat."""

from __future__ import annotations

import pytest

from passes.merge_slices import MergeSlices
from tests.asserting import assert_rewrites, assert_unchanged


def network(lines: str, constants: str = "", signature: str = "float[2,6,8] x") -> str:
    """`constants` name vectors: "p=1,2 q=0"."""
    named = [entry.split("=") for entry in constants.split()]
    given = [f"int64[{v.count(',') + 1}] {name} = {{{v}}}" for name, v in named]
    return f"g ({signature}) => (float[p,q,r] y) <{', '.join(given)}> {{ {lines} }}"


BOUNDS = "i0=0 i1=1 i2=2 i3=3 i4=4 i6=6 m1=-1 m2=-2 big=9223372036854775807"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("b = Slice(x, i0, i3, i1) y = Slice(b, i2, i4, i2)", "s=0,2 e=3,4 a=1,2 t=1,1"),
        ("b = Slice(x, i1, big, i1) y = Slice(b, i1, i3, i1)", "s=2 e=4 a=1 t=1"),
        ("b = Slice(x, m2, big, i2) y = Slice(b, m1, big, i2)", "s=7 e=8 a=2 t=1"),
        ("b = Slice(x, i1, i4, i1) y = Slice(b, i0, m1, i1)", "s=1 e=3 a=1 t=1"),
        (
            "b = Slice(x, i0, big, i1, i2) y = Slice(b, i1, big, i2, i2)",
            f"s=0,1 e={2**63 - 1},{2**63 - 1} a=1,2 t=2,2",
        ),
    ],
)
def test_slices_of_slices(before: str, after: str) -> None:
    expected = network("y = Slice(x, s, e, a, t)", after)
    assert_rewrites(network(before, BOUNDS), expected, MergeSlices())


def test_windows_of_unknown_sizes_are_counted_from_the_front() -> None:
    dynamic = "float[2,N,8] x"
    before = "b = Slice(x, i1, big, i1) y = Slice(b, i1, i3, i1)"
    expected = network("y = Slice(x, s, e, a, t)", "s=2 e=4 a=1 t=1", dynamic)
    assert_rewrites(network(before, BOUNDS, dynamic), expected, MergeSlices())
    backward = "b = Slice(x, m2, big, i1) y = Slice(b, i0, i1, i1)"
    assert_unchanged(network(backward, BOUNDS, dynamic), MergeSlices())


def test_steps_on_one_axis_stay() -> None:
    lines = "b = Slice(x, i0, big, i2, i2) y = Slice(b, i1, i3, i2)"
    assert_unchanged(network(lines, BOUNDS), MergeSlices())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = Slice(x, i0, i2, i1) b = Slice(x, i2, big, i1) y = Concat<axis=1>(b, a)", "2,4"),
        ("a = Slice(x, m2, big, i1) b = Slice(x, i0, m2, i1) y = Concat<axis=1>(a, b)", "4,2"),
    ],
)
def test_slices_that_divide_an_axis(before: str, after: str) -> None:
    expected = network("a, b = Split<axis=1>(x, s) y = Concat<axis=1>(b, a)", f"s={after}")
    assert_rewrites(network(before, BOUNDS), expected, MergeSlices())


@pytest.mark.parametrize(
    "lines",
    [
        "a = Slice(x, i0, i2, i1) b = Slice(x, i3, big, i1) y = Concat<axis=1>(b, a)",
        "a = Slice(x, i0, i3, i1) b = Slice(x, i2, big, i1) y = Concat<axis=1>(b, a)",
        "a = Slice(x, i0, i3, i1, i2) b = Slice(x, i3, big, i1) y = Concat<axis=1>(b, a)",
        "a = Slice(x, i0, i2, i1) b = Slice(x, i2, i4, i1) y = Concat<axis=1>(b, a)",
        "y = Slice(x, i0, i2, i1)",
    ],
)
def test_slices_with_gaps_overlaps_or_steps_stay(lines: str) -> None:
    assert_unchanged(network(lines, BOUNDS), MergeSlices())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a, b = Split<axis=1>(x, s) c = Concat<axis=1>(a, b) y = Exp(c)", "y = Exp(x)"),
        ("a, b = Split<axis=1>(x, s) c = Concat<axis=-2>(a, b) y = Exp(c)", "y = Exp(x)"),
        (
            "a = Exp(x) c = Concat<axis=1>(x, a) d, e = Split<axis=1>(c, h) y = Sub(e, d)",
            "a = Exp(x) y = Sub(a, x)",
        ),
    ],
)
def test_there_and_back(before: str, after: str) -> None:
    constants = "s=2,4 h=6,6"
    assert_rewrites(network(before, constants), network(after, constants), MergeSlices())


@pytest.mark.parametrize(
    "lines",
    [
        "a, b = Split<axis=1>(x, s) y = Concat<axis=1>(b, a)",
        "a, b = Split<axis=1>(x, h) y = Concat<axis=2>(a, b)",
        "a = Exp(x) c = Concat<axis=1>(x, a) d, e = Split<axis=1>(c, k) y = Concat<axis=1>(e, d)",
    ],
)
def test_other_orders_stay(lines: str) -> None:
    assert_unchanged(network(lines, "s=2,4 h=3,3 k=4,8"), MergeSlices())
