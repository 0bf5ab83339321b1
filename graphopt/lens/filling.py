"""Lowerings of operators that make tensors out of shapes and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import fx

from graphopt.lens.site import Row, Site

__all__ = ["ROWS"]


def shape_of(x: torch.Tensor, start: int, end: int | None) -> torch.Tensor:
    """The shape as a tensor beside `x`, so that what is computed from it stays on its device."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def _shape(site: Site) -> fx.Node:
    end = site.integer("end", 0) if "end" in site.attributes else None
    return site.call(shape_of, site.arg(0), site.integer("start", 0), end)


def size_of(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def _size(site: Site) -> fx.Node:
    return site.call(size_of, site.arg(0))


def _constant_of_shape(site: Site) -> fx.Node:
    given = site.attributes.get("value")
    fill = (
        np.asarray(given.values).reshape(-1)[0] if isinstance(given, gs.Constant) else np.float32(0)
    )
    dtype = site.out_dtype()
    if dtype is None:
        site.refuse("the type of its elements is not known")
    number = float(fill) if dtype.name == "bfloat16" else fill.item()
    shape = site.sizes(0)
    return site.call(full, shape, number, site.torch_type(dtype), site.anchor())


def full(
    shape: Sequence[int], value: float, dtype: torch.dtype, anchor: torch.Tensor | None
) -> torch.Tensor:
    """A tensor of one value, on the device of the module's input."""
    device = anchor.device if anchor is not None else None
    return torch.full(tuple(shape), value, dtype=dtype, device=device)


def value_range(start: torch.Tensor, limit: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Numbers from `start` in steps, as many as ONNX counts."""
    first, last, by = (value.reshape(()) for value in (start, limit, step))
    count = max(int(torch.ceil((last - first) / by).item()), 0)
    return first + torch.arange(count, dtype=first.dtype, device=first.device) * by


def _range(site: Site) -> fx.Node:
    return site.call(value_range, *site.args())


def eye_like(x: torch.Tensor, dtype: torch.dtype | None, diagonal: int) -> torch.Tensor:
    """A matrix of the input's shape with ones on one diagonal."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    columns = torch.arange(x.shape[1], device=x.device)
    return (columns - rows == diagonal).to(dtype or x.dtype)


def _eye_like(site: Site) -> fx.Node:
    dtype = site.out_dtype()
    to = None if dtype is None else site.torch_type(dtype)
    return site.call(eye_like, site.arg(0), to, site.integer("k", 0))


def _constant(site: Site) -> fx.Node:
    """A constant that stayed a node because it is an output of its scope."""
    given = site.attributes.get("value")
    if isinstance(given, gs.Constant):
        return site.around.held(site.constant_tensor(np.asarray(given.values)))
    key = next((key for key in _CONSTANTS if key in site.attributes), None)
    if key is None:
        site.refuse("its value is of a type that torch lacks")
    array = np.asarray(site.attributes[key], _CONSTANTS[key])
    return site.around.held(site.constant_tensor(array))


_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


ROWS: Mapping[str, Row] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
    "Range": _range,
    "Shape": _shape,
    "Size": _size,
}
