"""Fast widths are found by timing, not assumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from graphopt.runtime import widths


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    """Let layers take so long by their width, dense ones nine times as long."""

    def fake(layers: Sequence[tuple[int, bool]], progress: object) -> dict[tuple[int, bool], float]:
        return {(width, alone): seconds(width) * (1 if alone else 9) for width, alone in layers}

    monkeypatch.setattr(widths, "_seconds", fake)


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_blocks_of_channels_are_found(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A width that is between two multiples costs as much as the upper one."""
    timed(monkeypatch, lambda width: (math.ceil(width / block) * block) ** 2 * 1e-9)
    assert widths.fast_multiple() == block


def test_single_channels_pay_where_time_is_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda width: width**2 * 1e-9)
    assert widths.fast_multiple() == 1


def test_nothing_pays_where_time_does_not_depend_on_width(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda width: 1e-3)
    assert widths.fast_multiple() == 1


def test_this_machine_has_an_answer() -> None:
    assert widths.fast_multiple() in (1, 4, 8, 16, 32)
