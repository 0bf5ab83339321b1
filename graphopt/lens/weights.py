"""Which constants are weights, that training changes, and which are settings that it must not.

A weight is a float constant that some node reads as an operand: a kernel, a bias, a table. Bounds,
scales of a Resize, quantization scales and the like are settings. So is a lone number beside an
elementwise operator (the 0.5 and the square root of a GELU), and an operand with infinities (a
mask). A constant that one node reads as a weight is a weight for all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Graph

__all__ = ["is_float", "weight_names"]

_ALL = frozenset(range(64))

SETTINGS: Mapping[str, frozenset[int]] = {
    "AffineGrid": _ALL,
    "Clip": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "DFT": frozenset({1, 2}),
    "Dropout": frozenset({1, 2}),
    "DynamicQuantizeLinear": _ALL,
    "MelWeightMatrix": _ALL,
    "NonMaxSuppression": _ALL,
    "OneHot": _ALL,
    "Pad": frozenset({1, 2, 3}),
    "QLinearConv": _ALL,
    "QLinearMatMul": _ALL,
    "QuantizeLinear": frozenset({1, 2}),
    "Range": _ALL,
    "Resize": frozenset({1, 2, 3}),
    "RoiAlign": frozenset({1, 2}),
    "STFT": _ALL,
    "Upsample": frozenset({1}),
}
"""Inputs, by position, that no training changes."""

PARAMETRIC = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "DeformConv",
        "GRU",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "PRelu",
        "RMSNormalization",
        "RNN",
    }
)
"""Operators whose constant operands are weights even if they have a single element."""

_FRACTIONS = frozenset({"float16", "float32", "float64", "bfloat16"})
_RUNNING = {"BatchNormalization": frozenset({3, 4})}
"""Inputs that are state: training updates them, but not by gradients."""


def is_float(array: Array) -> bool:
    """Whether an array's type is one that gradients are computed in."""
    return array.dtype.name in _FRACTIONS


def weight_names(graph: Graph) -> frozenset[str]:
    """The constants that become parameters."""
    found: set[str] = set()
    for node in graph.all_nodes():
        for position, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) and tensor.name not in found:
                array = graph.constant(tensor.name)
                if array is not None and is_float(array) and _trains(node, position, array):
                    found.add(tensor.name)
    return frozenset(found)


def _trains(node: gs.Node, position: int, array: Array) -> bool:
    if position in SETTINGS.get(node.op, ()) or position in _RUNNING.get(node.op, ()):
        return False
    if node.op in PARAMETRIC:
        return True
    return array.size > 1 and bool(np.isfinite(array).all())
