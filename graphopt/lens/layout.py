"""Lowerings of operators that move, copy, join or cut elements without computing with them."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from graphopt.lens.site import Emitted, Row, Site

__all__ = ["ROWS"]


def reshape(x: torch.Tensor, shape: Sequence[int], *, zero_is_copy: bool) -> torch.Tensor:
    """Reshape to a target of which zeros may stand for the input's own sizes."""
    if zero_is_copy:
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(tuple(shape))


def _reshape(site: Site) -> fx.Node:
    x, shape = site.arg(0), _target(site) or site.sizes(1, "shape")
    copies = not site.flag("allowzero")
    if isinstance(shape, tuple) and (0 not in shape or not copies):
        return site.call(torch.reshape, x, shape)
    return site.call(reshape, x, shape, zero_is_copy=copies)


def _target(site: Site) -> tuple[int, ...] | None:
    """A target of which all sizes but one are known, that one as -1."""
    known = site.graph.known(site.name(1)) if site.has(1) else None
    if known is None or known.ndim != 1:
        return None
    sizes = [entry if isinstance(entry, int) else None for entry in known.tolist()]
    if sizes.count(None) != 1 or -1 in sizes or 0 in sizes:
        return None
    return tuple(-1 if size is None else int(size) for size in sizes)


def _flatten(site: Site) -> fx.Node:
    axis, rank = site.integer("axis", 1), site.rank(0)
    if axis == 1 and rank is not None and rank > 1:
        return site.call(torch.flatten, site.arg(0), 1)
    return site.call(flatten, site.arg(0), axis)


def flatten(x: torch.Tensor, axis: int) -> torch.Tensor:
    """A matrix: axes before `axis` as rows, all others as columns."""
    axis = axis + x.dim() if axis < 0 else axis
    rows = math.prod(x.shape[:axis])
    return x.reshape(rows, math.prod(x.shape[axis:]))


def _transpose(site: Site) -> fx.Node:
    perm = site.integers("perm")
    if perm is None:
        return site.call(reverse_axes, site.arg(0))
    return site.call(torch.permute, site.arg(0), perm)


def reverse_axes(x: torch.Tensor) -> torch.Tensor:
    return x.permute(*range(x.dim() - 1, -1, -1))


def unsqueeze(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Add axes of size 1 at places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _unsqueeze(site: Site) -> fx.Node:
    axes = site.sizes(1, "axes")
    if isinstance(axes, tuple) and len(axes) == 1:
        return site.call(torch.unsqueeze, site.arg(0), axes[0])
    return site.call(unsqueeze, site.arg(0), axes)


def _squeeze(site: Site) -> fx.Node:
    axes = site.sizes(1, "axes")
    if axes is None:
        return site.call(torch.squeeze, site.arg(0))
    return site.call(squeeze, site.arg(0), axes)


def squeeze(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    return torch.squeeze(x, tuple(axes))


def _concat(site: Site) -> fx.Node:
    return site.call(torch.cat, tuple(site.args()), site.integer("axis", 1))


def split(
    x: torch.Tensor, axis: int, sizes: Sequence[int] | None, parts: int
) -> tuple[torch.Tensor, ...]:
    """Cut into parts of given sizes, or of equal ones (the last may be smaller)."""
    if sizes is None:
        return torch.split(x, -(-x.shape[axis] // parts), axis)
    return torch.split(x, list(sizes), axis)


def _split(site: Site) -> Emitted:
    outputs = len(site.node.outputs)
    sizes = site.sizes(1, "split")
    parts = site.integer("num_outputs", outputs)
    made = site.call(split, site.arg(0), site.integer("axis", 0), sizes, parts)
    return site.unpack(made, outputs)


def axis_slice(x: torch.Tensor, axis: int, start: int, end: int, step: int) -> torch.Tensor:
    """One axis from `start` to `end`, clamped to what there is; a negative step walks back."""
    if step > 0:
        window = [slice(None)] * x.dim()
        window[axis] = slice(start, end, step)
        return x[tuple(window)]
    size = x.shape[axis]
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    picks = torch.arange(start, min(start, end), step, device=x.device)
    return x.index_select(axis, picks)


def slices(
    x: torch.Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> torch.Tensor:
    """Slice several axes."""
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = axis_slice(x, axis, start, end, step)
    return x


def _slice(site: Site) -> fx.Node:
    starts, ends = site.sizes(1, "starts"), site.sizes(2, "ends")
    axes, steps = site.sizes(3, "axes"), site.sizes(4)
    window = _window(site.rank(0), starts, ends, axes, steps)
    if window is not None:
        return site.call(operator.getitem, site.arg(0), window)
    return site.call(slices, site.arg(0), starts, ends, axes, steps)


def _window(rank: int | None, *given: object) -> tuple[slice, ...] | None:
    """Slices as Python writes them, where everything is known and steps are positive."""
    known = [v if v is None or isinstance(v, tuple) else () for v in given]
    starts, ends, axes, steps = known
    if rank is None or not starts or not ends or axes == () or steps == ():
        return None
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if any(not isinstance(entry, int) for entry in (*axes, *steps)) or min(steps) < 1:
        return None
    window = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        window[axis] = slice(start, end if isinstance(end, fx.Node) or end < 2**31 - 1 else None,
                             None if step == 1 else step)  # fmt: skip
    return tuple(window)


def expand(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Broadcast against a shape, either way."""
    rank = max(x.dim(), len(shape))
    have = (1,) * (rank - x.dim()) + tuple(x.shape)
    want = (1,) * (rank - len(shape)) + tuple(shape)
    return x.expand([b if a == 1 else a for a, b in zip(have, want, strict=True)])


def _expand(site: Site) -> fx.Node:
    return site.call(expand, site.arg(0), site.sizes(1))


def tile(x: torch.Tensor, repeats: Sequence[int]) -> torch.Tensor:
    return x.repeat(tuple(repeats))


def _tile(site: Site) -> fx.Node:
    return site.call(tile, site.arg(0), site.sizes(1))


def depth_to_space(x: torch.Tensor, block: int, *, columns_first: bool) -> torch.Tensor:
    """Spread channels over blocks of pixels; the block's place counts slower than the channel."""
    batch, channels, height, width = x.shape
    inner = channels // block**2
    if columns_first:
        split_up = x.reshape(batch, inner, block, block, height, width)
        mixed = split_up.permute(0, 1, 4, 2, 5, 3)
    else:
        split_up = x.reshape(batch, block, block, inner, height, width)
        mixed = split_up.permute(0, 3, 4, 1, 5, 2)
    return mixed.reshape(batch, inner, height * block, width * block)


def _depth_to_space(site: Site) -> fx.Node:
    columns_first = site.text("mode", "DCR") == "CRD"
    block = site.integer("blocksize", 1)
    return site.call(depth_to_space, site.arg(0), block, columns_first=columns_first)


def space_to_depth(x: torch.Tensor, block: int, *, columns_first: bool) -> torch.Tensor:
    """Gather blocks of pixels into channels, as `depth_to_space` spreads them."""
    batch, channels, height, width = x.shape
    split_up = x.reshape(batch, channels, height // block, block, width // block, block)
    mixed = (
        split_up.permute(0, 1, 3, 5, 2, 4) if columns_first else split_up.permute(0, 3, 5, 1, 2, 4)
    )
    return mixed.reshape(batch, channels * block**2, height // block, width // block)


def _space_to_depth(site: Site) -> fx.Node:
    columns_first = site.text("mode", "DCR") == "CRD"
    block = site.integer("blocksize", 1)
    return site.call(space_to_depth, site.arg(0), block, columns_first=columns_first)


def trilu(x: torch.Tensor, diagonal: Sequence[int] | None, *, upper: bool) -> torch.Tensor:
    """The triangle above or below a diagonal; zero elsewhere."""
    k = diagonal[0] if diagonal else 0
    rows = torch.arange(x.shape[-2], device=x.device).unsqueeze(-1)
    columns = torch.arange(x.shape[-1], device=x.device)
    kept = columns - rows >= k if upper else columns - rows <= k
    return torch.where(kept, x, torch.zeros_like(x))


def _trilu(site: Site) -> fx.Node:
    return site.call(trilu, site.arg(0), site.sizes(1), upper=site.flag("upper", default=True))


def reverse_sequence(
    x: torch.Tensor, lengths: torch.Tensor, batch_axis: int, time_axis: int
) -> torch.Tensor:
    """Reverse the first `lengths[b]` steps of each sequence."""
    steps = x.movedim((batch_axis, time_axis), (0, 1))
    time = torch.arange(steps.shape[1], device=x.device).unsqueeze(0)
    ends = lengths.unsqueeze(1)
    index = torch.where(time < ends, ends - 1 - time, time)
    rows = torch.arange(steps.shape[0], device=x.device).unsqueeze(1)
    return steps[rows, index].movedim((0, 1), (batch_axis, time_axis))


def _reverse_sequence(site: Site) -> fx.Node:
    axes = site.integer("batch_axis", 1), site.integer("time_axis", 0)
    return site.call(reverse_sequence, site.arg(0), site.arg(1), *axes)


ROWS: Mapping[str, Row] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
