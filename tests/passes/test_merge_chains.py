"""merge-chains: casts, clamps and concatenations in a row."""

from __future__ import annotations

import pytest

from passes.merge_chains import MergeChains
from tests.asserting import assert_rewrites, assert_unchanged

FLOAT, INT32, INT64, HALF, DOUBLE = 1, 6, 7, 10, 11
TYPES = {"float": FLOAT, "int32": INT32, "int64": INT64, "float16": HALF, "double": DOUBLE}


def casts(given: str, *targets: str) -> str:
    lines, source = [], "x"
    for place, target in enumerate(targets):
        name = "y" if place == len(targets) - 1 else f"t{place}"
        lines.append(f"{name} = Cast<to={TYPES[target]}>({source})")
        source = name
    return f"g ({given}[2,3] x) => ({targets[-1]}[2,3] y) {{ {' '.join(lines)} }}"


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ("float16", ("float", "double")),
        ("float16", ("float", "int64")),
        ("float", ("double", "float16")),
        ("int32", ("int64", "float")),
        ("int32", ("double", "int64")),
    ],
)
def test_a_cast_that_loses_nothing_goes(given: str, targets: tuple[str, ...]) -> None:
    assert_rewrites(casts(given, *targets), casts(given, targets[-1]), MergeChains())


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ("float", ("float16", "float")),
        ("double", ("float", "float16")),
        ("int64", ("double", "float")),
        ("int32", ("float", "double")),
        ("float", ("int64", "float")),
    ],
)
def test_a_cast_that_rounds_stays(given: str, targets: tuple[str, ...]) -> None:
    assert_unchanged(casts(given, *targets), MergeChains())


def clamps(lines: str, last: str = "Neg", opset: int = 17) -> str:
    names = {"m2": -2, "m1": -1, "z": 0, "p1": 1, "one": 1, "p2": 2, "p6": 6}
    more = ", ".join(f"float {name} = {{{value}.0}}" for name, value in names.items())
    return f"g (float[4,50] x) => (float[4,50] y) <{more}> {{ {lines} y = {last}(c) }}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("b = Relu(x) c = Relu(b)", "c = Relu(x)"),
        ("b = Relu(x) c = Clip(b, z, p6)", "c = Clip(x, z, p6)"),
        ("b = Clip(x, m1, p6) c = Relu(b)", "c = Clip(x, z, p6)"),
        ("b = Clip(x, m1) c = Relu(b)", "c = Relu(x)"),
        ("b = Clip(x, z, p1) c = Clip(b, m2, p6)", "c = Clip(x, z, p1)"),
        ("b = Clip(x, m2, p1) c = Clip(b, m1, p2)", "c = Clip(x, m1, p1)"),
        ("b = Clip(x, m2, m1) c = Clip(b, p1, p2)", "c = Clip(x, p1, one)"),
        ("b = Clip(x, , p2) c = Clip(b, , p1)", "c = Clip(x, , p1)"),
    ],
)
def test_clamps(before: str, after: str) -> None:
    assert_rewrites(clamps(before), clamps(after), MergeChains())


def test_bounds_as_attributes() -> None:
    before = clamps("b = Clip<min=0.0, max=6.0>(x) c = Clip<min=-1.0, max=2.0>(b)")
    assert_rewrites(before, clamps("c = Clip<min=0.0, max=2.0>(x)"), MergeChains(), opset=10)


@pytest.mark.parametrize(
    "lines",
    [
        "b = Clip(x, p2, p1) c = Relu(b)",
        "m = ReduceMax<keepdims=0>(x) b = Clip(x, z, m) c = Relu(b)",
        "b = Relu(x) a = Neg(b) c = Relu(a)",
    ],
)
def test_other_clamps_stay(lines: str) -> None:
    assert_unchanged(clamps(lines), MergeChains())


def concats(lines: str, outputs: str = "float[2,p] y") -> str:
    return f"g (float[2,3] x) => ({outputs}) {{ a = Neg(x) {lines} }}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("b = Concat<axis=1>(x, a) y = Concat<axis=1>(b, x)", "y = Concat<axis=1>(x, a, x)"),
        ("b = Concat<axis=-1>(x, a) y = Concat<axis=1>(a, b)", "y = Concat<axis=1>(a, x, a)"),
        (
            """b = Concat<axis=1>(x, a) c = Concat<axis=1>(b, x) d = Concat<axis=1>(a, a)
            y = Concat<axis=1>(c, d)""",
            "y = Concat<axis=1>(x, a, x, a, a)",
        ),
    ],
)
def test_concats(before: str, after: str) -> None:
    assert_rewrites(concats(before), concats(after), MergeChains())


@pytest.mark.parametrize(
    ("lines", "outputs"),
    [
        (
            "b = Concat<axis=0>(x, a) c = Neg(b) d = Concat<axis=0>(a, x) y = Concat<axis=1>(c, d)",
            "float[4,p] y",
        ),
        (
            "b = Concat<axis=1>(x, a) y = Concat<axis=1>(b, x) z = Neg(b)",
            "float[2,p] y, float[2,q] z",
        ),
        ("b = Concat<axis=1>(x, a) y = Concat<axis=1>(b, x)", "float[2,p] y, float[2,q] b"),
    ],
)
def test_concats_that_are_needed_stay(lines: str, outputs: str) -> None:
    assert_unchanged(concats(lines, outputs), MergeChains())
