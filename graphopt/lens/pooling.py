"""Lowerings of pooling, over windows and over whole images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.convolution import CONVOLUTIONS
from graphopt.lens.site import Emitted, Row, Site
from graphopt.lens.windows import Window, pad_sides, window_of

__all__ = ["ROWS"]

_Pool = Callable[..., torch.Tensor]
MAX_POOLS: Mapping[int, _Pool] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
MEAN_POOLS: Mapping[int, _Pool] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_INDEXED: Mapping[int, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    1: functional.max_pool1d_with_indices,
    2: functional.max_pool2d_with_indices,
    3: functional.max_pool3d_with_indices,
}


def _window(site: Site) -> Window:
    kernel = site.integers("kernel_shape")
    if kernel is None or len(kernel) not in MAX_POOLS:
        site.refuse(f"torch pools over 1 to 3 axes, the kernel is {kernel}")
    return window_of(site, kernel)


def _is_native(window: Window) -> bool:
    """Whether torch pads as this window asks."""
    return window.even and all(
        2 * pad <= size for pad, size in zip(window.befores, window.kernel, strict=True)
    )


def _sides(x: torch.Tensor, window: Window) -> list[tuple[int, int]]:
    sizes = x.shape[2:]
    pads, more = window.pads(sizes), window.overhang(sizes)
    return [(before, after + extra) for (before, after), extra in zip(pads, more, strict=True)]


def max_pool(x: torch.Tensor, *, window: Window) -> torch.Tensor:
    """Pool after padding with the least value there is."""
    low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = pad_sides(x, _sides(x, window), low)
    pool = MAX_POOLS[len(window.kernel)]
    if x.is_floating_point():
        return pool(padded, window.kernel, window.strides, 0, window.dilations)
    wide = pool(padded.to(torch.float32), window.kernel, window.strides, 0, window.dilations)
    return wide.to(x.dtype)


def max_pool_indices(
    x: torch.Tensor, *, window: Window, columns_first: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool, and say where in the whole (batch, channel, ...) tensor each maximum was."""
    sides = _sides(x, window)
    padded = pad_sides(x, sides, -math.inf)
    pool = _INDEXED[len(window.kernel)]
    values, places = pool(padded, window.kernel, window.strides, 0, window.dilations)
    spatial = list(x.shape[2:])
    coordinates = []
    for axis in reversed(range(len(spatial))):
        size = padded.shape[2 + axis]
        coordinates.append(places % size - sides[axis][0])
        places = places // size
    coordinates.reverse()
    order = range(len(spatial)) if not columns_first else reversed(range(len(spatial)))
    flat = torch.zeros_like(values, dtype=torch.int64)
    for axis in order:
        flat = flat * spatial[axis] + coordinates[axis]
    batch, channels = x.shape[:2]
    image = torch.arange(batch * channels, device=x.device) * math.prod(spatial)
    return values, flat + image.reshape(batch, channels, *[1] * len(spatial))


def _max_pool(site: Site) -> Emitted:
    window = _window(site)
    if site.wants(1):
        columns_first = site.flag("storage_order")
        made = site.bound(max_pool_indices, site.arg(0), window=window, columns_first=columns_first)
        return site.unpack(made, 2)
    dtype = site.dtype(0)
    if not _is_native(window) or dtype is None or dtype.kind != "f":
        return site.bound(max_pool, site.arg(0), window=window)
    pool = MAX_POOLS[len(window.kernel)]
    numbers = window.kernel, window.strides, window.befores, window.dilations
    return site.call(pool, site.arg(0), *numbers, ceil_mode=window.ceil)


def window_sums(x: torch.Tensor, window: Window, sides: list[tuple[int, int]]) -> torch.Tensor:
    """Sums over windows, channel by channel."""
    padded = pad_sides(x, sides)
    images = padded.reshape(-1, 1, *padded.shape[2:])
    ones = torch.ones(1, 1, *window.kernel, dtype=x.dtype, device=x.device)
    convolution = CONVOLUTIONS[len(window.kernel)]
    sums = convolution(images, ones, None, window.strides, 0, window.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def mean_pool(x: torch.Tensor, *, window: Window, count_pads: bool) -> torch.Tensor:
    """Means over windows; padding counts only if asked for, what ceil_mode adds never does."""
    sizes, sides = x.shape[2:], _sides(x, window)
    counted = torch.ones(1, 1, *sizes, dtype=x.dtype, device=x.device)
    rest = sides
    if count_pads:
        pads = window.pads(sizes)
        counted = pad_sides(counted, pads, 1.0)
        rest = [(0, after - pair[1]) for (_, after), pair in zip(sides, pads, strict=True)]
    return window_sums(x, window, sides) / window_sums(counted, window, rest)


def _average_pool(site: Site) -> fx.Node:
    window = _window(site)
    count_pads = site.flag("count_include_pad")
    if not _is_native(window) or max(window.dilations) > 1:
        return site.bound(mean_pool, site.arg(0), window=window, count_pads=count_pads)
    return site.call(
        MEAN_POOLS[len(window.kernel)],
        site.arg(0),
        window.kernel,
        window.strides,
        window.befores,
        ceil_mode=window.ceil,
        count_include_pad=count_pads,
    )


def norm_pool(x: torch.Tensor, *, window: Window, p: int) -> torch.Tensor:
    """p-norms over windows."""
    return window_sums(x.abs() ** p, window, _sides(x, window)) ** (1 / p)


def _lp_pool(site: Site) -> fx.Node:
    return site.bound(norm_pool, site.arg(0), window=_window(site), p=site.integer("p", 2))


def whole_image(x: torch.Tensor) -> tuple[int, ...]:
    """The spatial axes."""
    return tuple(range(2, x.dim()))


def global_mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean(whole_image(x), keepdim=True)


def global_max(x: torch.Tensor) -> torch.Tensor:
    return x.amax(whole_image(x), keepdim=True)


def global_norm(x: torch.Tensor, p: int) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(x, p, whole_image(x), keepdim=True)
    return norm


def _global_average_pool(site: Site) -> fx.Node:
    if site.rank(0) == 4:
        return site.call(torch.mean, site.arg(0), (2, 3), True)
    return site.call(global_mean, site.arg(0))


def _global_max_pool(site: Site) -> fx.Node:
    return site.call(global_max, site.arg(0))


def _global_lp_pool(site: Site) -> fx.Node:
    return site.call(global_norm, site.arg(0), site.integer("p", 2))


def max_unpool(
    x: torch.Tensor, places: torch.Tensor, output: list[int] | None, *, window: Window
) -> torch.Tensor:
    """Put maxima back where they were; places count through the whole unpooled tensor."""
    natural = list(x.shape[:2])
    for axis, size in enumerate(x.shape[2:]):
        grown = (size - 1) * window.strides[axis] + window.kernel[axis]
        natural.append(grown - window.befores[axis] - window.afters[axis])
    flat = x.new_zeros(math.prod(natural)).scatter(0, places.reshape(-1), x.reshape(-1))
    small = flat.reshape(natural)
    if output is None or list(output) == natural:
        return small
    grow = [(0, want - have) for want, have in zip(output[2:], natural[2:], strict=True)]
    return pad_sides(small, grow)


def _max_unpool(site: Site) -> fx.Node:
    return site.bound(max_unpool, site.arg(0), site.arg(1), site.sizes(2), window=_window(site))


ROWS: Mapping[str, Row] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalLpPool": _global_lp_pool,
    "GlobalMaxPool": _global_max_pool,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "MaxUnpool": _max_unpool,
}
