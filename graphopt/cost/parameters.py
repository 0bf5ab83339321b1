"""Which constants of a model are parameters, and how much they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.cost.macs import operator
from graphopt.ir import Graph

__all__ = ["parameter_names", "size_bytes"]

# Inputs that describe values instead of being weights: scales, zero points, running statistics.
_DESCRIPTIVE: Mapping[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "ConvInteger": frozenset({2, 3}),
    "DequantizeLinear": frozenset({1, 2}),
    "MatMulInteger": frozenset({2, 3}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QuantizeLinear": frozenset({1, 2}),
    "com.microsoft:DequantizeLinear": frozenset({1, 2}),
    "com.microsoft:DynamicQuantizeLSTM": frozenset({8, 9, 10, 11}),
    "com.microsoft:DynamicQuantizeMatMul": frozenset({2, 3}),
    "com.microsoft:MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
    "com.microsoft:MatMulNBits": frozenset({2, 3, 4}),
    "com.microsoft:QGemm": frozenset({1, 2, 4, 5, 7, 8}),
    "com.microsoft:QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "com.microsoft:QuantizeLinear": frozenset({1, 2}),
}
# Wide integers are sizes and indices, except where an operator takes them as quantized weights.
_WIDE_WEIGHTS: Mapping[str, frozenset[int]] = {
    "DequantizeLinear": frozenset({0}),
    "QLinearConv": frozenset({8}),
    "com.microsoft:DequantizeLinear": frozenset({0}),
    "com.microsoft:QGemm": frozenset({6}),
    "com.microsoft:QLinearConv": frozenset({8}),
}
_NARROW_TYPES = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})
_WIDE_TYPES = frozenset({"int16", "uint16", "int32", "uint32"})
_FLOATING = ("float", "bfloat", "complex")
_PACKED_BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}


def parameter_names(graph: Graph) -> Iterator[str]:
    """Name the constants that hold parameters, a shared one once.

    Those are arrays (not scalars) of a floating or quantized type that some node reads as more
    than a scale, a zero point or a running statistic.
    """
    for name, array in graph.constants().items():
        kind = array.dtype.name
        wide = kind in _WIDE_TYPES
        if not (wide or kind in _NARROW_TYPES or kind.startswith(_FLOATING)):
            continue
        if array.ndim > 0 and any(
            _is_weight(node, name, wide=wide) for node in graph.consumers(name)
        ):
            yield name


def _is_weight(node: gs.Node, name: str, *, wide: bool) -> bool:
    places = {index for index, tensor in enumerate(node.inputs) if tensor.name == name}
    key = operator(node)
    if wide:
        return bool(places & _WIDE_WEIGHTS.get(key, frozenset()))
    return bool(places - _DESCRIPTIVE.get(key, frozenset()))


def size_bytes(array: np.ndarray) -> int:
    """Return what an array takes in a file, where types below a byte are packed."""
    bits = _PACKED_BITS.get(array.dtype.name, 8 * array.dtype.itemsize)
    return -(-array.size * bits // 8)
