"""Lowerings of conversions between element types."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from graphopt.lens.dtypes import CARRIERS, EXACT, element_type
from graphopt.lens.site import Row, Site

__all__ = ["ROWS", "cast_float8"]


def cast(x: torch.Tensor, to: torch.dtype, wraps: tuple[int, int] | None) -> torch.Tensor:
    """Convert; types narrower than their carrier wrap around as if they were stored."""
    if wraps is None:
        return x.to(to)
    low, high = wraps
    return ((x.to(torch.int64) - low) % (high - low + 1) + low).to(to)


_SMALL = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3),
          "uint16": (0, 65535), "uint32": (0, 2**32 - 1)}  # fmt: skip

_EIGHT_BITS = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


def cast_float8(x: torch.Tensor, to: torch.dtype, *, saturate: bool) -> torch.Tensor:
    """Convert to an 8-bit float; values too large become the largest, or what the type has."""
    if not saturate:
        limit = torch.finfo(to).max
        beyond = x.abs().to(torch.float32) > limit * (1 + torch.finfo(to).eps / 2)
        special = float("inf") if to == torch.float8_e5m2 else float("nan")
        wide = torch.where(beyond, torch.full_like(x, special) * x.sign(), x)
        return wide.to(to)
    limit = torch.finfo(to).max
    wide = x.to(torch.float32)
    if to in (torch.float8_e5m2, torch.float8_e4m3fn):
        return wide.clamp(-limit, limit).to(to)
    held = torch.where(wide.isinf(), wide, wide.clamp(-limit, limit))
    return held.clamp(-limit, limit).to(to)


def converted(site: Site, x: fx.Node, dtype: np.dtype[np.generic]) -> fx.Node:
    """Emit the conversion of a tensor to an element type."""
    to = site.torch_type(dtype)
    if dtype.name in _EIGHT_BITS:
        return site.call(cast_float8, x, to, saturate=site.flag("saturate", default=True))
    wraps = _SMALL.get(dtype.name)
    source = site.dtype(0)
    if wraps is None and dtype.kind in "iu" and (source is None or source.kind == "f"):
        return (
            site.call(cast, x, torch.int64, None)
            if to == torch.int64
            else site.call(cast, site.call(torch.Tensor.to, x, torch.int64), to, None)
        )
    if wraps is None:
        return site.call(torch.Tensor.to, x, to)
    return site.call(cast, x, to, wraps)


def _target_type(site: Site) -> np.dtype[np.generic]:
    to = site.attributes.get("to")
    if to is None:
        site.refuse("it does not say to which type")
    return element_type(to) if isinstance(to, int) else np.dtype(str(to))


def _cast(site: Site) -> fx.Node:
    dtype = _target_type(site)
    if site.dtype(0) == dtype:
        return site.arg(0)
    return converted(site, site.arg(0), dtype)


def _cast_like(site: Site) -> fx.Node:
    dtype = site.dtype(1)
    if dtype is None:
        return site.call(torch.Tensor.type_as, site.arg(0), site.arg(1))
    return converted(site, site.arg(0), dtype)


def _bit_cast(site: Site) -> fx.Node:
    dtype, source = _target_type(site), site.dtype(0)
    if source is None or source.itemsize != dtype.itemsize:
        site.refuse(f"the bits of {source} are not those of a torch type for {dtype}")
    x, own = site.arg(0), site.torch_type(dtype)
    if source in CARRIERS:
        x = site.call(torch.Tensor.to, x, EXACT[source])
    bits = site.call(torch.Tensor.view, x, EXACT.get(dtype, own))
    return site.call(torch.Tensor.to, bits, own) if dtype in CARRIERS else bits


ROWS: Mapping[str, Row] = {"BitCast": _bit_cast, "Cast": _cast, "CastLike": _cast_like}
