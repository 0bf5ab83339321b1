"""Random variants of images: mirrored, shifted, with a hole; drawn as numbers, made on the device.

Images are inputs of four axes with 1, 3 or 4 channels on axis 1 or on the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["COLUMNS", "channel_axis", "draw_variants", "variants"]

COLUMNS = 5
"""What is drawn for each image: mirrored or not; shifts along both axes; centre of the hole."""

_COLOURS = (1, 3, 4)
_SHIFT = 8
"""Unless it is said how far, images are shifted by up to an eighth: 4 pixels of 32."""
_HOLE = 4
"""A hole is a quarter of the size: 8 pixels of 32."""


def channel_axis(shape: Sequence[int]) -> int | None:
    """The axis of the colours; None if this is no batch of images."""
    if len(shape) != 4:
        return None
    if shape[1] in _COLOURS:
        return 1
    return 3 if shape[3] in _COLOURS else None


def draw_variants(
    rng: np.random.Generator,
    count: int,
    size: tuple[int, int],
    wanted: Sequence[str],
    shift: int | None = None,
) -> npt.NDArray[np.int64]:
    """Draw (count, COLUMNS) numbers; shifts by up to `shift` pixels. What is not wanted is -1."""
    drawn = np.full((count, COLUMNS), -1, np.int64)
    # All are drawn whatever is wanted, so that one option does not change what others draw.
    mirrored = rng.integers(0, 2, count)
    fractions = rng.random((count, 4))
    if "flip" in wanted:
        drawn[:, 0] = mirrored
    for place, extent in enumerate(size):
        reach = extent // _SHIFT if shift is None else shift
        if "crop" in wanted:
            drawn[:, 1 + place] = (fractions[:, place] * (2 * reach + 1)).astype(np.int64) - reach
        if "cutout" in wanted:
            drawn[:, 3 + place] = (fractions[:, 2 + place] * extent).astype(np.int64)
    return drawn


def variants(images: torch.Tensor, drawn: torch.Tensor, wanted: Sequence[str]) -> torch.Tensor:
    """The images as drawn; what is shifted in from outside, and a hole, is 0."""
    axis = channel_axis(images.shape)
    assert axis is not None, "only images have variants"
    x = images.permute(0, 2, 3, 1) if axis == 1 else images
    height, width = x.shape[1:3]
    rows = torch.arange(height, device=x.device).expand(len(x), height)
    columns = torch.arange(width, device=x.device).expand(len(x), width)
    if "flip" in wanted:
        columns = torch.where(drawn[:, :1] == 1, width - 1 - columns, columns)
    kept = torch.ones((), dtype=torch.bool, device=x.device)
    if "cutout" in wanted:
        kept = ~(
            _within(rows, drawn[:, 3:4], height // _HOLE)[:, :, None]
            & _within(columns, drawn[:, 4:5], width // _HOLE)[:, None, :]
        )
    if "crop" in wanted:
        rows, columns = rows + drawn[:, 1:2], columns + drawn[:, 2:3]
        inside = [(at >= 0) & (at < n) for at, n in ((rows, height), (columns, width))]
        kept = kept & inside[0][:, :, None] & inside[1][:, None, :]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    if "flip" in wanted or "crop" in wanted:
        each = torch.arange(len(x), device=x.device)[:, None, None]
        x = x[each, rows[:, :, None], columns[:, None, :]]
    if "crop" in wanted or "cutout" in wanted:
        x = x * kept[..., None]
    return x.permute(0, 3, 1, 2) if axis == 1 else x


def _within(places: torch.Tensor, centre: torch.Tensor, size: int) -> torch.Tensor:
    start = centre - size // 2
    return (places >= start) & (places < start + size)
