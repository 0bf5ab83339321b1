"""What a layer multiplies its weights with, at sampled places of its output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

__all__ = ["convolution_patches", "flat_rows", "windows_of"]


def windows_of(node: gs.Node, kernel: Sequence[int], data: np.ndarray) -> npt.NDArray[np.float32]:
    """What a convolution sees at each place: (input, channel, *places, *kernel), a view.

    Of a padded copy, where there is padding.
    """
    strides = _numbers(node, "strides", len(kernel))
    dilations = _numbers(node, "dilations", len(kernel))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = _pads(node, data.shape[2:], spans, strides)
    padded = np.pad(data.astype(np.float32, copy=False), [(0, 0), (0, 0), *pads])
    axes = tuple(range(2, data.ndim))
    windows: npt.NDArray[np.float32] = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
    return windows[tuple(slice(None, None, step) for step in (1, 1, *strides, *dilations))]


def convolution_patches(
    node: gs.Node, kernel: Sequence[int], data: np.ndarray, count: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Patches (row, in channel, kernel element) at `count` random places, the same for all inputs.

    All places where the output has no more than `count`.
    """
    windows, rank = windows_of(node, kernel, data), len(kernel)
    sizes = windows.shape[2 : 2 + rank]
    total = math.prod(sizes)
    chosen = np.arange(total) if total <= count else rng.choice(total, count, replace=False)
    places: list[slice | np.ndarray] = [slice(None), slice(None)]
    places.extend(np.unravel_index(chosen, sizes))
    rows = np.moveaxis(windows[tuple(places)], 2, 1)
    return rows.reshape(-1, data.shape[1], math.prod(kernel))


def flat_rows(data: np.ndarray, count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Rows (row, in channel, 1) of what a matrix product multiplies, `count` for each input."""
    rows = data.reshape(len(data), -1, data.shape[-1])
    if rows.shape[1] > count:
        rows = rows[:, rng.choice(rows.shape[1], count, replace=False)]
    return rows.reshape(-1, data.shape[-1], 1).astype(np.float32, copy=False)


def _numbers(node: gs.Node, key: str, rank: int) -> list[int]:
    return [int(value) for value in node.attrs.get(key) or [1] * rank]


def _pads(
    node: gs.Node, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and after each axis; SAME lets the output be the input by the stride."""
    automatic = node.attrs.get("auto_pad", "NOTSET")
    mode = automatic.decode() if isinstance(automatic, bytes) else str(automatic)
    if mode.startswith("SAME"):
        wanted = [
            max((math.ceil(size / stride) - 1) * stride + span - size, 0)
            for size, span, stride in zip(sizes, spans, strides, strict=True)
        ]
        less = [(pad // 2, pad - pad // 2) for pad in wanted]
        return less if mode == "SAME_UPPER" else [(b, a) for a, b in less]
    pads = [int(pad) for pad in node.attrs.get("pads") or [0] * 2 * len(sizes)]
    rank = len(sizes)
    return list(zip(pads[:rank], pads[rank:], strict=True)) if mode == "NOTSET" else [(0, 0)] * rank
