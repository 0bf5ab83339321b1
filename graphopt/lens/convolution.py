"""Lowerings of convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.site import Row, Site
from graphopt.lens.windows import Window, pad_sides, window_of

__all__ = ["CONVOLUTIONS", "ROWS", "convolve", "kernel_of"]

CONVOLUTIONS: Mapping[int, Callable[..., torch.Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
"""By the number of spatial axes."""

TRANSPOSED: Mapping[int, Callable[..., torch.Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def kernel_of(site: Site, weight: int) -> tuple[int, ...]:
    """The kernel's size, from the attribute or the weight's shape."""
    given = site.integers("kernel_shape")
    if given is not None:
        return given
    shape = site.graph.shape(site.name(weight))
    sizes = () if shape is None else tuple(s for s in shape[2:] if isinstance(s, int))
    if shape is None or len(sizes) != len(shape) - 2:
        site.refuse("the size of its kernel is not known")
    return sizes


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    window: Window,
    groups: int,
) -> torch.Tensor:
    """Convolve with padding that depends on the input's size, or is uneven."""
    x = pad_sides(x, window.pads(x.shape[2:]))
    function = CONVOLUTIONS[len(window.kernel)]
    return function(x, weight, bias, window.strides, 0, window.dilations, groups)


def _conv(site: Site) -> fx.Node:
    window = window_of(site, kernel_of(site, 1))
    spatial, groups = len(window.kernel), site.integer("group", 1)
    if spatial not in CONVOLUTIONS:
        site.refuse(f"torch has no convolution over {spatial} axes")
    args = site.arg(0), site.arg(1), site.optional(2)
    if window.even:
        numbers = window.strides, window.befores, window.dilations, groups
        return site.call(CONVOLUTIONS[spatial], *args, *numbers)
    return site.bound(convolve, *args, window=window, groups=groups)


def transposed_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    window: Window,
    groups: int,
    extra: Sequence[int],
    output: Sequence[int] | None,
) -> torch.Tensor:
    """Convolve transposed, then cut the padding off the full result, or extend it."""
    function = TRANSPOSED[len(window.kernel)]
    full = function(x, weight, None, window.strides, 0, 0, groups, window.dilations)
    cuts = []
    for axis, size in enumerate(full.shape[2:]):
        before, after = window.befores[axis], window.afters[axis]
        grown = size + extra[axis]
        target = output[axis] if output is not None else None
        if target is None and window.auto_pad.startswith("SAME"):
            target = min(x.shape[axis + 2] * window.strides[axis], grown)
        if target is not None:
            total = grown - target
            before = total // 2 if window.auto_pad == "SAME_UPPER" else total - total // 2
            after = total - before
        cuts.append((-before, extra[axis] - after))
    if bias is None:
        return pad_sides(full, cuts)
    shift = bias.reshape(1, -1, *[1] * len(cuts))  # also where the result is extended
    return pad_sides(full, cuts) + shift


def _conv_transpose(site: Site) -> fx.Node:
    window = window_of(site, kernel_of(site, 1))
    spatial, groups = len(window.kernel), site.integer("group", 1)
    if spatial not in TRANSPOSED:
        site.refuse(f"torch has no transposed convolution over {spatial} axes")
    extra = site.integers("output_padding") or (0,) * spatial
    output = site.integers("output_shape")
    args = site.arg(0), site.arg(1), site.optional(2)
    fits = all(
        e < max(s, d) for e, s, d in zip(extra, window.strides, window.dilations, strict=True)
    )
    if window.even and output is None and fits:
        numbers = window.strides, window.befores, extra, groups, window.dilations
        return site.call(TRANSPOSED[spatial], *args, *numbers)
    if output is not None and len(output) > spatial:
        output = output[-spatial:]
    return site.bound(
        transposed_convolution, *args, window=window, groups=groups, extra=extra, output=output
    )


def deformed_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    *,
    window: Window,
    groups: int,
    offset_groups: int,
) -> torch.Tensor:
    """Convolve over points that are moved by offsets, interpolating between pixels."""
    batch, channels, height, width = x.shape
    taps = window.kernel[0] * window.kernel[1]
    rows, columns = offset.shape[-2:]
    moved = offset.reshape(batch, offset_groups, taps, 2, rows, columns)
    grid = _sampling_grid(x, moved, window)
    share = channels // offset_groups
    images = x.reshape(batch * offset_groups, share, height, width)
    points = grid.reshape(batch * offset_groups, taps * rows, columns, 2)
    sampled = functional.grid_sample(images, points, align_corners=True)
    sampled = sampled.reshape(batch, offset_groups, share, taps, rows, columns)
    if mask is not None:
        sampled = sampled * mask.reshape(batch, offset_groups, 1, taps, rows, columns)
    filters = weight.reshape(groups, weight.shape[0] // groups, -1, taps)
    inputs = sampled.reshape(batch, groups, channels // groups, taps, rows, columns)
    out = torch.einsum("goct,bgctrk->bgork", filters, inputs)
    out = out.reshape(batch, weight.shape[0], rows, columns)
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)


def _sampling_grid(x: torch.Tensor, moved: torch.Tensor, window: Window) -> torch.Tensor:
    """Where to sample, (batch, groups, taps, rows, columns, xy), as grid_sample counts."""
    axes = []
    for axis, size in enumerate(x.shape[2:]):
        steps = torch.arange(moved.shape[-2 + axis], device=x.device, dtype=x.dtype)
        start = steps * window.strides[axis] - window.befores[axis]
        tap = torch.arange(window.kernel[axis], device=x.device, dtype=x.dtype)
        tap = tap * window.dilations[axis]
        other = window.kernel[1 - axis]
        tap = tap.repeat_interleave(other) if axis == 0 else tap.repeat(other)
        shape = (1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1)
        place = tap.reshape(1, -1, 1, 1) + start.reshape(shape)
        place = place.unsqueeze(1) + moved[:, :, :, axis]
        axes.append(place * (2 / (size - 1)) - 1 if size > 1 else place * 2)
    return torch.stack([axes[1], axes[0]], -1)


def _deform_conv(site: Site) -> fx.Node:
    window = window_of(site, kernel_of(site, 1))
    if len(window.kernel) != 2:
        site.refuse("only deformed convolutions of images can be")
    args = site.arg(0), site.arg(1), site.arg(2), site.optional(3), site.optional(4)
    return site.bound(
        deformed_convolution,
        *args,
        window=window,
        groups=site.integer("group", 1),
        offset_groups=site.integer("offset_group", 1),
    )


ROWS: Mapping[str, Row] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DeformConv": _deform_conv,
}
