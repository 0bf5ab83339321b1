"""Operators that ONNX Runtime's CPU provider executes on 8-bit integers: one row each.

Found by running small graphs and looking at what its optimizer (1.32) makes of QuantizeLinear and
DequantizeLinear around an operator; what has no row is left in floating point. ConvTranspose,
Pad, Resize by interpolation, ReduceMean, Sub, Div, Tanh, HardSigmoid and the like have no kernel.
Softmax has one that loses more than it gains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import onnx_graphsurgeon as gs

from graphopt.ir import Graph

__all__ = ["RULES", "Role", "Rule"]


class Role(StrEnum):
    """What an operator is to quantization."""

    LAYER = "layer"
    """Multiplies with constant weights: what is worth being quantized."""
    COMPUTE = "compute"
    """Makes new values from integers: worth it between layers only."""
    MOVE = "move"
    """Hands values on, so that its data input and its outputs share one grid."""


def _always(graph: Graph, node: gs.Node) -> str | None:
    return None


@dataclass(frozen=True)
class Rule:
    """How one operator is executed on integers.

    refuse       why a node of it is not, None if it is
    weight_axis  of a layer's output channels in its weight (input 1)
    floats_out   whether the kernel can give floats, so that it needs no grid behind it
    instead      the operator and attributes that stand for it on integers
    """

    role: Role
    refuse: Callable[[Graph, gs.Node], str | None] = _always
    weight_axis: Callable[[gs.Node], int] = lambda node: 0
    floats_out: bool = False
    instead: tuple[str, Mapping[str, object]] | None = None


def _only_first_output(graph: Graph, node: gs.Node) -> str | None:
    used = [
        t.name
        for t in node.outputs[1:]
        if t.name and (graph.consumers(t.name) or graph.is_output(t.name))
    ]
    return f"its output {used[0]!r} is read" if used else None


def _all_outputs(graph: Graph, node: gs.Node) -> str | None:
    idle = [t.name for t in node.outputs if not graph.consumers(t.name)]
    return f"its output {idle[0]!r} is not read" if idle else None


def _gemm(graph: Graph, node: gs.Node) -> str | None:
    for key in ("alpha", "beta"):
        if float(node.attrs.get(key, 1.0)) != 1.0:
            return f"{key} is {node.attrs[key]:g}"
    if len(node.inputs) > 2 and node.inputs[2].name:
        bias, weight = graph.constant(node.inputs[2].name), graph.shape(node.inputs[1].name)
        columns = None if weight is None else weight[0 if node.attrs.get("transB") else 1]
        if bias is None or bias.size != columns:
            return "its third input is not a bias of the output's columns"
    return "transA is set" if node.attrs.get("transA") else None


def _text(node: gs.Node, key: str, default: str) -> str:
    value = node.attrs.get(key, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _resize(graph: Graph, node: gs.Node) -> str | None:
    mode = _text(node, "mode", "nearest")
    return None if mode == "nearest" else f"it interpolates ({mode})"


def _pool(graph: Graph, node: gs.Node) -> str | None:
    if any(int(d) != 1 for d in node.attrs.get("dilations") or ()):
        return "it is dilated"
    return None


_MOVE = Rule(Role.MOVE)
_COMPUTE = Rule(Role.COMPUTE)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Add": _COMPUTE,
        "AveragePool": Rule(Role.COMPUTE, _pool),
        "Concat": _COMPUTE,
        "Conv": Rule(Role.LAYER),
        "DepthToSpace": _MOVE,
        "Expand": _MOVE,
        "Flatten": _MOVE,
        "Gather": _MOVE,
        "GatherElements": _MOVE,
        "Gemm": Rule(
            Role.LAYER, _gemm, lambda node: 0 if node.attrs.get("transB") else 1, floats_out=True
        ),
        "GlobalAveragePool": _COMPUTE,
        "LeakyRelu": _COMPUTE,
        "MatMul": Rule(Role.LAYER, weight_axis=lambda node: 1, floats_out=True),
        "MaxPool": Rule(Role.MOVE, _only_first_output),
        "Mul": _COMPUTE,
        "ReduceMax": _MOVE,
        "ReduceMin": _MOVE,
        "Relu": Rule(Role.COMPUTE, instead=("LeakyRelu", {"alpha": 0.0})),
        "Reshape": _MOVE,
        "Resize": Rule(Role.MOVE, _resize),
        "Sigmoid": _COMPUTE,
        "Slice": _MOVE,
        "Split": Rule(Role.MOVE, _all_outputs),
        "Squeeze": _MOVE,
        "Tile": _MOVE,
        "Transpose": _MOVE,
        "Unsqueeze": _MOVE,
    }
)
