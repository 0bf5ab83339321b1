"""Values on their way between numpy and ONNX Runtime.

Everything is an array here, also what ONNX does not call a tensor: a sequence is a 1-D object array
of its elements, a map an object array of its keys' and its values' array, an absent optional an
object array of length 0.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

__all__ = ["RAW_TYPES", "feed_value", "from_ort", "lent_value", "port_dtype", "to_ort"]

_DTYPES: Mapping[int, np.dtype] = {
    code: np.dtype(helper.tensor_dtype_to_np_dtype(code))
    for code in helper.get_all_tensor_dtypes()
    if code != onnx.TensorProto.STRING
}
RAW_TYPES: Mapping[np.dtype, int] = {
    dtype: code for code, dtype in _DTYPES.items() if dtype.type.__module__ == "ml_dtypes"
}
"""Types that numpy lacks: ONNX Runtime takes and gives them as bytes with an ONNX type."""

_PORT_DTYPES: Mapping[str, np.dtype] = {
    "string": np.dtype(np.object_),
    **{onnx.TensorProto.DataType.Name(code).lower(): dtype for code, dtype in _DTYPES.items()},
}


def port_dtype(kind: str) -> np.dtype | None:
    """The element type of what ONNX Runtime calls `tensor(...)`; None for anything else."""
    inner = re.fullmatch(r"tensor\((\w+)\)", kind)
    return _PORT_DTYPES.get(inner[1]) if inner else None


def lent_value(array: np.ndarray) -> ort.OrtValue:
    """A tensor in the array's own memory (a copy, if that is not contiguous)."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    code = RAW_TYPES.get(array.dtype)
    if code is None:
        return ort.OrtValue.ortvalue_from_numpy(array)
    raw = array.view(np.dtype(f"uint{8 * array.dtype.itemsize}"))
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, code)


def feed_value(array: np.ndarray) -> ort.OrtValue:
    """A tensor in memory of its own where numpy lacks the type, else in the array's."""
    code = RAW_TYPES.get(array.dtype)
    if code is None:
        return lent_value(array)
    packed = numpy_helper.from_array(array).raw_data
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, code)
    ctypes.memmove(value.data_ptr(), packed, len(packed))
    return value


def to_ort(array: np.ndarray) -> np.ndarray | list[np.ndarray]:
    """An array, or the elements of a sequence."""
    if array.dtype == object and array.ndim == 1 and all(isinstance(x, np.ndarray) for x in array):
        return list(array)
    return array


def from_ort(value: object) -> np.ndarray:
    """An array, of whatever ONNX Runtime has returned."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, ort.OrtValue):
        return _tensor(value)
    if isinstance(value, dict):
        return _objects([np.array(list(value)), np.array(list(value.values()))])
    if isinstance(value, list):
        return _objects([from_ort(element) for element in value])
    return np.asarray([] if value is None else value, object if value is None else None)


def _tensor(value: ort.OrtValue) -> np.ndarray:
    if not value.is_tensor() or _DTYPES.get(value.element_type()) not in RAW_TYPES:
        return from_ort(value.numpy())
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    proto = onnx.TensorProto(dims=value.shape(), data_type=value.element_type(), raw_data=data)
    return np.asarray(numpy_helper.to_array(proto))


def _objects(elements: list[np.ndarray]) -> np.ndarray:
    array = np.empty(len(elements), object)
    for index, element in enumerate(elements):
        array[index] = element
    return array
