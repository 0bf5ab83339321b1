"""Widths in multiples: none wider or emptier than it may be, together as many as asked for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt.coupling import Family, Member
from graphopt.coupling.selection import balanced


def family(name: str, size: int, owned: int = 1) -> Family:
    """A family each of whose channels owns so many indices of its one axis."""
    places = np.arange(size * owned)
    return Family(name, size, (Member(name, 0, places, places // owned),), np.arange(size))


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
    st.sampled_from([1, 4, 8, 16, 32]),
)
def test_widths_are_multiples_that_add_up(sizes: list[int], ratio: float, align: int) -> None:
    families = [family(f"f{place}", size) for place, size in enumerate(sizes)]
    widths = balanced(families, ratio, align)
    wide = [f for f in families if f.size >= 2 * align]
    assert all(1 <= widths[f.name] <= f.size for f in families)
    assert all(widths[f.name] % align == 0 or widths[f.name] == f.size for f in wide)
    if align > 1 and ratio <= 0.5 and len(wide) == len(families):
        apart = sum(widths.values()) - sum(sizes) * (1 - ratio)
        assert abs(apart) <= align


def test_halves_go_up_and_down_in_turn() -> None:
    families = [family(name, 48) for name in "abcd"]
    assert sorted(balanced(families, 0.5, 16).values()) == [16, 16, 32, 32]


def test_what_fits_is_left_alone() -> None:
    families = [family("a", 96), family("b", 64), family("c", 16)]
    assert balanced(families, 0.5, 16) == {"a": 48, "b": 32, "c": 8}


def test_heads_are_wide_by_themselves() -> None:
    assert balanced([family("heads", 12, 64)], 0.5, 16) == {"heads": 6}
    assert balanced([family("pairs", 40, 2)], 0.5, 16) == {"pairs": 24}
