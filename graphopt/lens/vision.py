"""Lowerings of operators on images: sampling, regions, patches, boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.site import Row, Site

__all__ = ["ROWS"]

_SAMPLING = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest",
             "bicubic": "bicubic", "cubic": "bicubic"}  # fmt: skip


def _grid_sample(site: Site) -> fx.Node:
    mode = _SAMPLING[site.text("mode", "linear")]
    padding, corners = site.text("padding_mode", "zeros"), site.flag("align_corners")
    if site.rank(0) not in (4, 5) or (site.rank(0) == 5 and mode == "bicubic"):
        site.refuse(f"torch does not sample tensors of {site.rank(0)} axes in mode {mode}")
    return site.call(
        functional.grid_sample, site.arg(0), site.arg(1), mode, padding, align_corners=corners
    )


def affine_grid(theta: torch.Tensor, size: Sequence[int], *, corners: bool) -> torch.Tensor:
    """Where each pixel of an image of `size` comes from under an affine map."""
    return functional.affine_grid(theta, list(size), corners)


def _affine_grid(site: Site) -> fx.Node:
    corners = site.flag("align_corners")
    return site.call(affine_grid, site.arg(0), site.sizes(1), corners=corners)


def fold(
    x: torch.Tensor,
    image: Sequence[int],
    block: Sequence[int],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    strides: tuple[int, ...],
) -> torch.Tensor:
    """Add patches up where they overlap."""
    befores, afters = pads[:2], pads[2:]
    grown = [size + a + b for size, a, b in zip(image, befores, afters, strict=True)]
    whole = functional.fold(x, tuple(grown), tuple(block), dilations, 0, strides)
    height, width = image
    return whole[:, :, befores[0] : befores[0] + height, befores[1] : befores[1] + width]


def fold_any(
    x: torch.Tensor,
    image: Sequence[int],
    block: Sequence[int],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    strides: tuple[int, ...],
) -> torch.Tensor:
    """Add patches of any rank up, through the flat place of each of their elements."""
    rank = len(image)
    grown = [image[i] + pads[i] + pads[i + rank] for i in range(rank)]
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for i in range(rank):
        taps = torch.arange(block[i], device=x.device) * dilations[i]
        reach = dilations[i] * (block[i] - 1) + 1
        starts = torch.arange(0, grown[i] - reach + 1, strides[i], device=x.device)
        place = taps.unsqueeze(1) + starts
        shape = [1] * (2 * rank)
        shape[i], shape[rank + i] = place.shape
        flat = flat * grown[i] + place.reshape(shape)
    batch, channels = x.shape[0], x.shape[1] * x.shape[2] // flat.numel()
    values = x.reshape(batch, channels, -1)
    out = values.new_zeros(batch, channels, int(torch.tensor(grown).prod()))
    out = out.index_add(2, flat.reshape(-1), values)
    out = out.reshape(batch, channels, *grown)
    for i in range(rank):
        out = out.narrow(2 + i, pads[i], image[i])
    return out


def _col2im(site: Site) -> fx.Node:
    image, block = site.sizes(1), site.sizes(2)
    length = site.graph.shape(site.name(1))
    count = length[0] if length and isinstance(length[0], int) else 2
    numbers = (
        site.integers("dilations") or (1,) * count,
        site.integers("pads") or (0,) * (2 * count),
        site.integers("strides") or (1,) * count,
    )
    return site.call(fold if count == 2 else fold_any, site.arg(0), image, block, *numbers)


def align_regions(
    x: torch.Tensor,
    regions: torch.Tensor,
    images: torch.Tensor,
    size: tuple[int, int],
    ratio: int,
    scale: float,
    *,
    mode: str,
    half_pixel: bool,
) -> torch.Tensor:
    """Pool each region, (x1, y1, x2, y2), into `size` bins from points between pixels."""
    outs = []
    for region, image in zip(regions, images.tolist(), strict=True):
        box = region * scale - (0.5 if half_pixel else 0.0)
        extent = box[2:] - box[:2]
        extent = extent if half_pixel else extent.clamp(min=1.0)
        axes = []
        for axis, count in ((1, size[0]), (0, size[1])):
            step = extent[axis] / count
            taps = ratio if ratio > 0 else max(int(torch.ceil(step)), 1)
            points = (torch.arange(count * taps, device=x.device, dtype=x.dtype) + 0.5) / taps
            axes.append((box[axis] + points * step, taps))
        (ys, rows), (xs, columns) = axes
        corners = _corners(x[image], ys, xs)
        blocks = [c.reshape(-1, size[0], rows, size[1], columns) for c in corners]
        if mode == "max":
            outs.append(torch.stack(blocks).amax(0).amax((2, 4)))
        else:
            outs.append(torch.stack(blocks).sum(0).mean((2, 4)))
    return torch.stack(outs) if outs else x.new_zeros(0, x.shape[1], *size)


def _corners(image: torch.Tensor, ys: torch.Tensor, xs: torch.Tensor) -> list[torch.Tensor]:
    """The four weighted pixels around each point of a grid, (channels, ys, xs)."""
    height, width = image.shape[-2:]
    inside = ((ys >= -1) & (ys <= height)).unsqueeze(1) & ((xs >= -1) & (xs <= width))
    parts = []
    for points, size in ((ys, height), (xs, width)):
        held = points.clamp(0, size - 1)
        low = held.floor().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        share = held - low
        parts.append(((low.to(torch.int64), 1 - share), (high.to(torch.int64), share)))
    return [
        image[:, y][:, :, x] * (wy.unsqueeze(1) * wx) * inside
        for y, wy in parts[0]
        for x, wx in parts[1]
    ]


def _roi_align(site: Site) -> fx.Node:
    transform = site.text(
        "coordinate_transformation_mode", "half_pixel" if site.opset >= 16 else "output_half_pixel"
    )
    size = site.integer("output_height", 1), site.integer("output_width", 1)
    return site.call(
        align_regions,
        *site.args(),
        size,
        site.integer("sampling_ratio", 0),
        site.number("spatial_scale", 1.0),
        mode=site.text("mode", "avg"),
        half_pixel=transform == "half_pixel",
    )


def suppress(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    limit: Sequence[int] | None,
    overlap: Sequence[float] | None,
    least: Sequence[float] | None,
    *,
    centered: bool,
) -> torch.Tensor:
    """Indices (image, class, box) of the best boxes that overlap no better one too much."""
    most, threshold = limit[0] if limit else 0, overlap[0] if overlap else 0.0
    kept: list[tuple[int, int, int]] = []
    for image, corners in enumerate(_as_corners(boxes, centered=centered)):
        for category, values in enumerate(scores[image]):
            order = torch.argsort(values, descending=True, stable=True)
            if least:
                order = order[values[order] > least[0]]
            for box in _greedy(corners, order.tolist(), most, threshold):
                kept.append((image, category, box))
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _as_corners(boxes: torch.Tensor, *, centered: bool) -> torch.Tensor:
    if centered:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        return torch.cat([middle - half, middle + half], -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _greedy(corners: torch.Tensor, order: list[int], most: int, threshold: float) -> list[int]:
    chosen: list[int] = []
    areas = (corners[:, 2:] - corners[:, :2]).prod(-1)
    for box in order:
        if len(chosen) >= most:
            break
        low = torch.maximum(corners[chosen, :2], corners[box, :2])
        high = torch.minimum(corners[chosen, 2:], corners[box, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        union = areas[chosen] + areas[box] - shared
        if not bool((shared > threshold * union).any()):
            chosen.append(box)
    return chosen


def _non_max_suppression(site: Site) -> fx.Node:
    args = site.arg(0), site.arg(1), site.sizes(2), site.numbers(3), site.numbers(4)
    return site.call(suppress, *args, centered=site.flag("center_point_box"))


ROWS: Mapping[str, Row] = {
    "AffineGrid": _affine_grid,
    "Col2Im": _col2im,
    "GridSample": _grid_sample,
    "NonMaxSuppression": _non_max_suppression,
    "RoiAlign": _roi_align,
}
