"""Lowerings of padding, and of cropping to a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.site import Row, Site

__all__ = ["ROWS"]


def pad_index(size: int, before: int, after: int, mode: str, device: torch.device) -> torch.Tensor:
    """Where each element of a padded axis comes from."""
    places = torch.arange(-before, size + after, device=device)
    if mode == "edge" or size == 1:
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = 2 * (size - 1)
    places = places % period
    return torch.where(places < size, places, period - places)


def pad(
    x: torch.Tensor,
    pads: Sequence[int],
    axes: Sequence[int] | None,
    value: torch.Tensor | float | None,
    mode: str,
) -> torch.Tensor:
    """Pad (befores, then afters) the axes; negative pads cut."""
    axes = range(x.dim()) if axes is None else axes
    count = len(axes)
    if mode == "constant":
        flat = [0] * (2 * x.dim())
        for place, axis in enumerate(axes):
            at = 2 * (x.dim() - 1 - axis % x.dim())
            flat[at], flat[at + 1] = pads[place], pads[place + count]
        fill = value.item() if isinstance(value, torch.Tensor) else value or 0
        return functional.pad(x, flat, value=fill)
    for place, axis in enumerate(axes):
        before, after = pads[place], pads[place + count]
        if before or after:
            index = pad_index(x.shape[axis], before, after, mode, x.device)
            x = x.index_select(axis, index)
    return x


def _pad(site: Site) -> fx.Node:
    mode = site.text("mode", "constant")
    value = site.number("value", 0.0) if site.opset < 11 else site.scalar(2)
    pads, axes = site.sizes(1, "pads" if "pads" in site.attributes else "paddings"), site.sizes(3)
    flat = _constant_pads(site, pads) if mode == "constant" and axes is None else None
    if flat is not None and not isinstance(value, fx.Node):
        return site.call(functional.pad, site.arg(0), flat, value=value or 0)
    return site.call(pad, site.arg(0), pads, axes, value, mode)


def _constant_pads(site: Site, pads: object) -> tuple[int, ...] | None:
    """Pads in torch's order: pairs, the last axis first."""
    if not isinstance(pads, tuple) or any(isinstance(entry, fx.Node) for entry in pads):
        return None
    half = len(pads) // 2
    pairs = [(pads[axis], pads[axis + half]) for axis in reversed(range(half))]
    while pairs and pairs[-1] == (0, 0):
        pairs.pop()
    return tuple(entry for pair in pairs for entry in pair)


def crop_or_pad(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Bring an axis to a size by cutting or zero-padding both ends alike."""
    have = x.shape[axis]
    if have >= size:
        return x.narrow(axis, (have - size) // 2, size)
    before = (size - have) // 2
    return pad(x, [before, size - have - before], [axis], None, "constant")


def center_crop_pad(
    x: torch.Tensor, shape: Sequence[int], axes: Sequence[int] | None
) -> torch.Tensor:
    for axis, size in zip(range(x.dim()) if axes is None else axes, shape, strict=True):
        x = crop_or_pad(x, axis, size)
    return x


def _center_crop_pad(site: Site) -> fx.Node:
    return site.call(center_crop_pad, site.arg(0), site.sizes(1), site.integers("axes"))


ROWS: Mapping[str, Row] = {"CenterCropPad": _center_crop_pad, "Pad": _pad}
