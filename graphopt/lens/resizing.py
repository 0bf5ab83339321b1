"""Lowerings of Resize and Upsample: each axis is a linear map, torch's own where it has one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.site import Numbers, Row, Site

__all__ = ["ROWS"]


@dataclass(frozen=True)
class Resizing:
    """How a Resize finds and weighs the pixels that an output pixel is made of."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    antialias: bool
    exclude_outside: bool
    outside: float
    policy: str


@dataclass(frozen=True)
class _Axis:
    """One axis: sizes, scale, and the region of interest."""

    size: int
    out: int
    scale: float
    start: float
    end: float


def _half_pixel(place: torch.Tensor, axis: _Axis) -> torch.Tensor:
    return (place + 0.5) / axis.scale - 0.5


def _half_pixel_symmetric(place: torch.Tensor, axis: _Axis) -> torch.Tensor:
    """Half pixels around a centre that stays put where sizes were rounded."""
    adjustment = axis.out / (axis.scale * axis.size)
    offset = axis.size / 2 * (1 - adjustment)
    return offset + (place + 0.5) / axis.scale - 0.5


def _pytorch_half_pixel(place: torch.Tensor, axis: _Axis) -> torch.Tensor:
    return _half_pixel(place, axis) if axis.out > 1 else torch.zeros_like(place)


def _align_corners(place: torch.Tensor, axis: _Axis) -> torch.Tensor:
    return place * ((axis.size - 1) / (axis.out - 1)) if axis.out > 1 else torch.zeros_like(place)


def _asymmetric(place: torch.Tensor, axis: _Axis) -> torch.Tensor:
    return place / axis.scale


def _crop_and_resize(place: torch.Tensor, axis: _Axis) -> torch.Tensor:
    if axis.out == 1:
        return torch.full_like(place, (axis.start + axis.end) * (axis.size - 1) / 2)
    step = (axis.end - axis.start) * (axis.size - 1) / (axis.out - 1)
    return axis.start * (axis.size - 1) + place * step


COORDINATES: Mapping[str, Callable[[torch.Tensor, _Axis], torch.Tensor]] = {
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "tf_crop_and_resize": _crop_and_resize,
    "tf_half_pixel_for_nn": lambda place, axis: (place + 0.5) / axis.scale,
}
"""Where an output pixel lies in the input."""

NEAREST: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round_prefer_ceil": lambda place: torch.floor(place + 0.5),
    "round_prefer_floor": lambda place: torch.ceil(place - 0.5),
}


def _linear_filter(distance: torch.Tensor, how: Resizing) -> torch.Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic_filter(distance: torch.Tensor, how: Resizing) -> torch.Tensor:
    d, a = distance.abs(), how.cubic
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


_FILTERS = {"linear": (_linear_filter, 1), "cubic": (_cubic_filter, 2)}
"""Weights by distance, and how far they reach."""


def axis_matrix(axis: _Axis, how: Resizing, like: torch.Tensor) -> torch.Tensor:
    """The map along one axis, (out, in); weights beyond the edge fall on it or are left out."""
    # In single precision, as ONNX Runtime: which pixel is nearest may hang on the last digit.
    place = torch.arange(axis.out, dtype=torch.float32, device=like.device)
    source = COORDINATES[how.coordinates](place, axis)
    inner = torch.arange(axis.size, device=like.device)
    outside = (source < 0) | (source > axis.size - 1)
    if how.mode == "nearest":
        picks = NEAREST[how.nearest](source).clamp(0, axis.size - 1)
        matrix = (inner == picks.unsqueeze(1)).to(torch.float32)
    else:
        rule, reach = _FILTERS[how.mode]
        shrink = min(axis.scale, 1.0) if how.antialias else 1.0
        span = math.ceil(reach / shrink)
        offsets = torch.arange(-span, span + 1, device=like.device)
        taps = torch.floor(source).unsqueeze(1) + offsets
        weights = rule((taps - source.unsqueeze(1)) * shrink, how)
        if how.exclude_outside:
            weights = torch.where((taps < 0) | (taps > axis.size - 1), 0.0, weights)
        if how.exclude_outside or how.antialias:
            weights = weights / weights.sum(1, keepdim=True)
        matrix = torch.zeros(axis.out, axis.size, dtype=torch.float32, device=like.device)
        matrix.scatter_add_(1, taps.clamp(0, axis.size - 1).to(torch.int64), weights)
    if how.coordinates == "tf_crop_and_resize":
        matrix[outside] = math.nan
    return matrix.to(like.dtype)


def resize(
    x: torch.Tensor,
    axes: Sequence[int] | None,
    region: Sequence[float] | None,
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    *,
    how: Resizing,
) -> torch.Tensor:
    """Resize axis after axis, in the widest type needed."""
    axes = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    wide = x if x.is_floating_point() else x.to(torch.float32)
    for place, axis in enumerate(_plan(x, axes, region, scales, sizes, how)):
        if axis.size == axis.out and axis.scale == 1:
            continue
        matrix = axis_matrix(axis, how, wide)
        if how.mode == "nearest" and not matrix.isnan().any():
            wide = wide.index_select(axes[place], matrix.argmax(1))
        else:
            wide = torch.matmul(wide.movedim(axes[place], -1), matrix.t()).movedim(-1, axes[place])
    if how.coordinates == "tf_crop_and_resize":
        wide = torch.where(wide.isnan(), torch.full_like(wide, how.outside), wide)
    return wide if x.is_floating_point() else wide.round().to(x.dtype)


def _plan(
    x: torch.Tensor,
    axes: Sequence[int],
    region: Sequence[float] | None,
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    how: Resizing,
) -> list[_Axis]:
    have = [x.shape[axis] for axis in axes]
    starts = region[: len(axes)] if region else [0.0] * len(axes)
    ends = region[len(axes) :] if region else [1.0] * len(axes)
    if sizes:
        factors = [want / size for want, size in zip(sizes, have, strict=True)]
        outs = list(sizes)
        if how.policy != "stretch":
            best = (min if how.policy == "not_larger" else max)(factors)
            factors = [best] * len(axes)
            outs = [math.floor(best * size + 0.5) for size in have]
    else:
        assert scales, "a Resize has scales or sizes"
        factors = [float(scale) for scale in scales]
        # The specification would crop the size too; ONNX Runtime does not.
        pairs = zip(have, np.asarray(factors, np.float32), strict=True)
        outs = [math.floor(np.float32(size) * factor) for size, factor in pairs]
    rows = zip(have, outs, factors, starts, ends, strict=True)
    return [_Axis(*row) for row in rows]


def _resize(site: Site) -> fx.Node:
    how = Resizing(
        site.text("mode", "nearest"),
        site.text("coordinate_transformation_mode", "half_pixel"),
        site.text("nearest_mode", "round_prefer_floor"),
        site.number("cubic_coeff_a", -0.75),
        site.flag("antialias"),
        site.flag("exclude_outside"),
        site.number("extrapolation_value", 0.0),
        site.text("keep_aspect_ratio_policy", "stretch"),
    )
    if site.opset < 11:
        old = Resizing(how.mode, "asymmetric", "floor", -0.75, False, False, 0.0, "stretch")
        return _emit(site, None, site.numbers(1), None, old)
    return _emit(site, site.numbers(1), site.numbers(2), site.sizes(3), how)


def _emit(
    site: Site,
    region: Numbers | None,
    scales: Numbers | None,
    sizes: tuple[int | fx.Node, ...] | fx.Node | None,
    how: Resizing,
) -> fx.Node:
    if sizes == ():
        sizes = None
    axes = site.integers("axes")
    if axes is None and isinstance(scales, tuple) and sizes is None and site.rank(0) == 4:
        native = _native(site, scales, how)
        if native is not None:
            return native
    crops = how.coordinates == "tf_crop_and_resize"
    roi = region if crops else None
    return site.bound(resize, site.arg(0), axes, roi, scales, sizes, how=how)


def _native(site: Site, scales: tuple[float, ...], how: Resizing) -> fx.Node | None:
    """Torch's own interpolation of images, where it means the same."""
    factors = scales[2:]
    if scales[:2] != (1.0, 1.0) or how.antialias or how.exclude_outside:
        return None
    whole = all(factor >= 1 and factor == int(factor) for factor in factors)
    if how.mode == "nearest" and whole and (how.coordinates, how.nearest) in _REPEATS:
        return site.call(functional.interpolate, site.arg(0), None, factors, "nearest")
    if how.mode == "linear" and whole and how.coordinates in ("half_pixel", "pytorch_half_pixel"):
        return site.call(functional.interpolate, site.arg(0), None, factors, "bilinear", False)
    return None


_REPEATS = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("half_pixel", "round_prefer_floor"),
}
"""Ways of finding the nearest pixel that only repeat pixels, for whole factors."""


def _upsample(site: Site) -> fx.Node:
    mode = site.text("mode", "nearest")
    how = Resizing(mode, "asymmetric", "floor", -0.75, False, False, 0.0, "stretch")
    return _emit(site, None, site.numbers(1, "scales" if site.opset < 9 else ""), None, how)


ROWS: Mapping[str, Row] = {"Resize": _resize, "Upsample": _upsample}
