"""Padding of windows that slide: what auto_pad, uneven pads and ceil_mode come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from graphopt.lens.site import Site

__all__ = ["Window", "pad_sides", "window_of"]


@dataclass(frozen=True)
class Window:
    """A window and how it moves, one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    befores: tuple[int, ...]
    afters: tuple[int, ...]
    auto_pad: str = "NOTSET"
    ceil: bool = False

    @property
    def even(self) -> bool:
        """Whether both sides are padded alike, by sizes known now."""
        return self.befores == self.afters and self.auto_pad in ("NOTSET", "VALID")

    @property
    def reach(self) -> tuple[int, ...]:
        """How many elements a window spans."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def pads(self, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Padding before and after each axis of an input, without what `ceil` adds."""
        if not self.auto_pad.startswith("SAME"):
            return tuple(zip(self.befores, self.afters, strict=True))
        pairs = []
        for size, stride, reach in zip(sizes, self.strides, self.reach, strict=True):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            less = total // 2
            upper = self.auto_pad == "SAME_UPPER"
            pairs.append((less, total - less) if upper else (total - less, less))
        return tuple(pairs)

    def overhang(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How far the last window of each axis reaches beyond the padded input."""
        out = []
        for axis, (before, after) in enumerate(self.pads(sizes)):
            room = sizes[axis] + before + after - self.reach[axis]
            stride = self.strides[axis]
            steps = room // stride
            if self.ceil and not self.auto_pad.startswith("SAME"):
                steps = -(-room // stride)
                if steps * stride >= sizes[axis] + before:
                    steps -= 1  # a window that starts in the padding after is dropped
            out.append(max(steps * stride - room, 0))
        return tuple(out)


def window_of(site: Site, kernel: Sequence[int]) -> Window:
    """Read a node's window attributes."""
    count = len(kernel)
    pads = site.integers("pads") or (0,) * (2 * count)
    auto_pad = site.text("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        pads = (0,) * (2 * count)
    return Window(
        tuple(kernel),
        site.integers("strides") or (1,) * count,
        site.integers("dilations") or (1,) * count,
        pads[:count],
        pads[count:],
        auto_pad,
        site.flag("ceil_mode"),
    )


def pad_sides(x: torch.Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    """Pad the last axes; (0, 0) everywhere leaves the tensor alone."""
    if not any(before or after for before, after in pads):
        return x
    flat = [size for pair in reversed(pads) for size in pair]
    return functional.pad(x, flat, value=value)
