"""Fast widths are found by timing, not assumed."""

from __future__ import annotations

import math

import pytest

from graphopt.runtime import widths


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_blocks_of_channels_are_found(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A width that is between two multiples costs as much as the upper one."""

    def seconds(width: int, *, alone: bool) -> float:
        return (math.ceil(width / block) * block) ** 2 * (1e-9 if alone else 9e-9)

    monkeypatch.setattr(widths, "_seconds", seconds)
    assert widths.fast_multiple() == block


def test_single_channels_pay_where_time_is_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widths, "_seconds", lambda width, alone: width**2 * 1e-9)
    assert widths.fast_multiple() == 1


def test_nothing_pays_where_time_does_not_depend_on_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widths, "_seconds", lambda width, alone: 1e-3)
    assert widths.fast_multiple() == 1


def test_this_machine_has_an_answer() -> None:
    assert widths.fast_multiple() in (1, 4, 8, 16, 32)
