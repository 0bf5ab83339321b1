"""Arrays to tensors: which torch type carries which element type of ONNX.

Types that torch lacks, or hardly computes with, travel in a wider one that holds all their values:
a row computes in the carrier and the graph's outputs are cast back.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
import torch

from graphopt.ir import Array

__all__ = [
    "CARRIERS",
    "EXACT",
    "carrier",
    "element_type",
    "integer_range",
    "is_whole",
    "to_array",
    "to_tensor",
]

_NATIVE: Mapping[np.dtype[np.generic], torch.dtype] = {
    np.dtype(np.bool_): torch.bool,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.int16): torch.int16,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float16): torch.float16,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    np.dtype(np.complex64): torch.complex64,
    np.dtype(np.complex128): torch.complex128,
}

_VIEWED: Mapping[np.dtype[np.generic], tuple[torch.dtype, np.dtype[np.generic]]] = {
    np.dtype(ml_dtypes.bfloat16): (torch.bfloat16, np.dtype(np.int16)),
    np.dtype(ml_dtypes.float8_e4m3fn): (torch.float8_e4m3fn, np.dtype(np.uint8)),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (torch.float8_e4m3fnuz, np.dtype(np.uint8)),
    np.dtype(ml_dtypes.float8_e5m2): (torch.float8_e5m2, np.dtype(np.uint8)),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (torch.float8_e5m2fnuz, np.dtype(np.uint8)),
}
"""Types that numpy and torch both know, but not from each other: exchanged as raw integers."""

CARRIERS: Mapping[np.dtype[np.generic], torch.dtype] = {
    np.dtype(np.uint16): torch.int32,
    np.dtype(np.uint32): torch.int64,
    np.dtype(np.uint64): torch.int64,
    np.dtype(ml_dtypes.int2): torch.int8,
    np.dtype(ml_dtypes.int4): torch.int8,
    np.dtype(ml_dtypes.uint2): torch.uint8,
    np.dtype(ml_dtypes.uint4): torch.uint8,
}

EXACT: Mapping[np.dtype[np.generic], torch.dtype] = {
    np.dtype(np.uint16): torch.uint16,
    np.dtype(np.uint32): torch.uint32,
    np.dtype(np.uint64): torch.uint64,
}
"""Types that torch holds but hardly computes with."""


def carrier(dtype: np.dtype[np.generic]) -> torch.dtype | None:
    """The torch type that values of an element type travel in; None if there is none."""
    viewed = _VIEWED.get(dtype)
    return _NATIVE.get(dtype) or (viewed[0] if viewed else None) or CARRIERS.get(dtype)


def element_type(code: int) -> np.dtype[np.generic]:
    """The element type that an ONNX type code names."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))


def integer_range(dtype: np.dtype[np.generic]) -> tuple[int, int]:
    """The least and the greatest value of an integer type."""
    limits = ml_dtypes.iinfo(dtype)
    return int(limits.min), int(limits.max)


def is_whole(dtype: np.dtype[np.generic]) -> bool:
    """Whether a type holds integers."""
    return dtype.kind in "iu" or dtype.name in ("int2", "int4", "uint2", "uint4")


def to_tensor(array: Array) -> torch.Tensor:
    """A copy of an array as a tensor; the element type must have a carrier."""
    viewed = _VIEWED.get(array.dtype)
    if viewed is not None:
        raw = np.array(array, order="C").view(viewed[1])
        return torch.from_numpy(raw).view(viewed[0]).reshape(array.shape)
    wide = CARRIERS.get(array.dtype)
    if wide is not None:
        return torch.from_numpy(np.asarray(array).astype(np.int64)).to(wide)
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    return torch.from_numpy(native.reshape(array.shape))


def to_array(tensor: torch.Tensor, dtype: np.dtype[np.generic] | None = None) -> Array:
    """A tensor's values as an array, of the given element type or the tensor's own."""
    plain = tensor.detach().cpu()
    for own, (torch_type, raw) in _VIEWED.items():
        if plain.dtype == torch_type:
            viewed = plain.contiguous().view(_NATIVE[raw]).numpy().view(own)
            return viewed if dtype is None else viewed.astype(dtype)
    array: Array = plain.numpy()
    return array if dtype is None or array.dtype == dtype else array.astype(dtype)
