"""Ties of convolutions, pools and resizing. Activations are (batch, channel, *space)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.coupling.axes import Axes, Axis, Fixed, Unfit, size_of
from graphopt.coupling.site import Rules, Site

__all__ = ["CONVOLUTIONS"]

_WINDOW = "slides a window along it"


def _windowed(site: Site, data: Axes, channel: Axis) -> Axes:
    """The output of an operator that slides along all axes but the first two."""
    for axis in data[2:]:
        site.pin(axis, _WINDOW, quiet=True)
    made = site.sizes.shape(site.node.outputs[0].name) or (None,) * len(data)
    return (data[0], channel, *site.held(made[2:], _WINDOW, quiet=True))


def _kernel(site: Site, weight: Axes) -> None:
    for axis in weight[2:]:
        site.pin(axis, "is a side of its kernel", quiet=True)


def _per_channel(site: Site, indices: Sequence[int], channel: Axis) -> None:
    """Tie vectors with one entry per channel; single values are for all of them."""
    for index in indices:
        if not site.has(index):
            continue
        axes = site.axes(index)
        if not axes or (size_of(axes[0]) == 1 and size_of(channel) != 1):
            site.wiring.pin_all(axes, site.fixed(1, "has one value for all channels"))
            continue
        if len(axes) != 1:
            raise Unfit("expects one value per channel")
        site.wiring.tie(channel, axes[0])


def _convolve(site: Site, data: Axes, weight: Axes, place: int = 1) -> Axis:
    """Tie the weight at input `place`, (out, in / group, *kernel); return the output's channels."""
    groups = site.attribute("group", 1)
    _kernel(site, weight)
    if groups == 1:
        site.wiring.tie(data[1], weight[1])
        return weight[0]
    if size_of(weight[1]) == 1:
        site.pin(weight[1], "has one input channel per group", quiet=True)
        _tie_blocks(site, data[1], weight[0], groups)
        return weight[0]
    why = site.fixed(None, "cuts it group by group", quiet=True)
    site.wiring.even(data[1], groups, why, weight[1], site.node.inputs[place].name)
    site.wiring.even(weight[0], groups, why, why, "")
    return weight[0]


def _tie_blocks(site: Site, single: Axis, blocks: Axis, count: int) -> None:
    """Tie each index of one axis with as many consecutive ones of another as there are for it."""
    if isinstance(blocks, Fixed):
        site.wiring.pin(single, blocks)
        return
    for column in blocks.reshape(count, -1).T:
        site.wiring.tie(single, column)


def convolution(site: Site) -> Sequence[Axes | None]:
    data, weight = site.axes(0), site.axes(1)
    channel = _convolve(site, data, weight)
    _per_channel(site, (2,), channel)
    return [_windowed(site, data, channel)]


def integer_convolution(site: Site) -> Sequence[Axes | None]:
    """ConvInteger: data, weight, and their zero points."""
    data, weight = site.axes(0), site.axes(1)
    channel = _convolve(site, data, weight)
    _per_channel(site, (3,), channel)
    return [_windowed(site, data, channel)]


def quantized_convolution(site: Site) -> Sequence[Axes | None]:
    """QLinearConv: the weight's scale and zero point may have one entry per output channel."""
    data, weight = site.axes(0), site.axes(3)
    channel = _convolve(site, data, weight, 3)
    _per_channel(site, (4, 5, 8), channel)
    return [_windowed(site, data, channel)]


def fused_convolution(site: Site) -> Sequence[Axes | None]:
    """A convolution with an activation, and a summand of the output's shape."""
    (out,) = convolution(site)
    assert out is not None
    return [site.broadcast([out, site.axes(3)]) if site.has(3) else out]


def transposed_convolution(site: Site) -> Sequence[Axes | None]:
    """The weight is (in, out / group, *kernel): input channels come in groups, outputs too."""
    data, weight = site.axes(0), site.axes(1)
    groups = site.attribute("group", 1)
    _kernel(site, weight)
    site.wiring.tie(data[1], weight[0])
    channel: Axis = weight[1]
    width = size_of(weight[1])
    if groups > 1 and width == 1 and size_of(data[1]) == groups:
        site.pin(weight[1], "has one output channel per group", quiet=True)
        channel = data[1]
    elif groups > 1:
        why = site.fixed(None, "cuts it group by group", quiet=True)
        site.wiring.even(data[1], groups, why, why, "")
        if isinstance(weight[1], Fixed):
            channel = site.fixed(groups, "has one output channel per group")
        else:
            channel = np.tile(weight[1], groups)
    _per_channel(site, (2,), channel)
    return [_windowed(site, data, channel)]


def pool(site: Site) -> Sequence[Axes | None]:
    """Pools work on each channel apart."""
    data = site.axes(0)
    out = _windowed(site, data, data[1])
    return [out] * len(site.node.outputs)


def quantized_pool(site: Site) -> Sequence[Axes | None]:
    if site.attribute("channels_last", 0):
        raise Unfit("has its channels last")
    return pool(site)


def resize(site: Site) -> Sequence[Axes | None]:
    """An axis whose size stays is left alone; any other is resampled."""
    data, shape = site.axes(0), site.shape()
    if "axes" in site.node.attrs or site.node.attrs.get("coordinate_transformation_mode") in (
        b"tf_crop_and_resize",
        "tf_crop_and_resize",
    ):
        raise Unfit("resizes by an option that is not followed")
    out: list[Axis] = []
    for place, (axis, size) in enumerate(zip(data, shape, strict=True)):
        if place < 2 and size_of(axis) == size and size is not None:
            out.append(axis)
            if len(site.node.inputs) > 3 and site.has(3) and not site.literal(3):
                site.pin(axis, "computes the size of it")
            continue
        if place < 2 and size is None and isinstance(axis, Fixed):
            out.append(axis)
            continue
        site.pin(axis, "resamples it", quiet=place > 1)
        out.append(site.fixed(size, "resamples it", quiet=place > 1))
    return [tuple(out)]


def depth_to_space(site: Site) -> Sequence[Axes | None]:
    """One output channel comes out of block * block input channels."""
    data, block = site.axes(0), site.attribute("blocksize", 1) ** 2
    channel: Axis = data[1]
    if not isinstance(channel, Fixed):
        columns_first = site.node.attrs.get("mode") in ("CRD", b"CRD")
        rows = channel.reshape(-1, block).T if columns_first else channel.reshape(block, -1)
        channel = rows[0]
        for row in rows[1:]:
            site.wiring.tie(channel, row)
    return [_windowed(site, data, channel)]


def space_to_depth(site: Site) -> Sequence[Axes | None]:
    """block * block output channels come out of one input channel, outermost in the output."""
    data, block = site.axes(0), site.attribute("blocksize", 1) ** 2
    channel: Axis = data[1]
    if not isinstance(channel, Fixed):
        channel = np.tile(channel, block)
    return [_windowed(site, data, channel)]


CONVOLUTIONS: Rules = {
    "AveragePool": pool,
    "Conv": convolution,
    "ConvInteger": integer_convolution,
    "ConvTranspose": transposed_convolution,
    "DepthToSpace": depth_to_space,
    "GlobalAveragePool": pool,
    "GlobalLpPool": pool,
    "GlobalMaxPool": pool,
    "LpPool": pool,
    "MaxPool": pool,
    "QLinearConv": quantized_convolution,
    "Resize": resize,
    "SpaceToDepth": space_to_depth,
    "Upsample": resize,
    "com.microsoft:FusedConv": fused_convolution,
    "com.microsoft:QLinearAveragePool": quantized_pool,
    "com.microsoft:QLinearGlobalAveragePool": quantized_pool,
}
