"""Torch gets its threads back, whatever happens."""

from __future__ import annotations

import pytest
import torch

from graphopt.lens import limited_threads


def _failing(count: int) -> None:
    with limited_threads(count):
        raise RuntimeError(f"{torch.get_num_threads()} threads")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_as_before(count: int) -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match=f"{count or before} threads"):
        _failing(count)
    assert torch.get_num_threads() == before
