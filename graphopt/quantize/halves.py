"""Weights, or whole networks, in 16-bit floats.

Stored: weights are halves in the file and cast back where they are read, which ONNX Runtime does
once, when it loads them. Computed: nodes whose operator is safe run on halves, with casts where
they meet others; a value that halves cannot hold keeps the nodes around it in single precision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.rewrite.matching import is_op

__all__ = ["LARGEST", "SAFE", "compute_in_halves", "float_tensors", "store_halves"]

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
_TYPES: Mapping[str, np.dtype[np.generic]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_SINGLE = np.dtype(np.float32)

_WORTH = 64
"""Elements; the cast of a smaller weight takes more bytes than it saves."""

SAFE = frozenset(
    """
    Abs Add AveragePool Clip Concat Conv ConvTranspose DepthToSpace Div Dropout Elu Expand Flatten
    Gather Gemm GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LayerNormalization
    LeakyRelu MatMul Max MaxPool Min Mul Neg PRelu Pad Relu Reshape Sigmoid Slice Softmax
    SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)
"""Operators that lose nothing but digits on halves: what adds up many numbers, raises to powers
or compares indices is not among them."""


def _too_large(array: Array, kind: str) -> bool:
    return bool(np.abs(array[np.isfinite(array)]).max(initial=0.0) > LARGEST[kind])


def store_halves(graph: Graph, kind: str) -> tuple[list[str], dict[str, str]]:
    """Store every float32 weight in 16 bits; return their names, and why others stay."""
    stored, left = [], {}
    for name, array in graph.constants().items():
        if array.dtype != _SINGLE or array.size < _WORTH or not graph.consumers(name):
            continue
        scopes = {id(graph.scope_of(node)) for node in graph.consumers(name)}
        if graph.is_output(name):
            left[name] = "it is an output"
        elif len(scopes) > 1:
            left[name] = "it is read inside a body and outside"
        elif _too_large(array, kind):
            left[name] = f"{np.abs(array).max():.4g} is larger than {kind} can hold"
        else:
            stored.append(name)
            _store(graph, name, array.astype(_TYPES[kind]))
    return stored, left


def _store(graph: Graph, name: str, halves: Array) -> None:
    readers = graph.consumers(name)
    hidden = graph.fresh(f"{name}_half")
    graph.rename(name, hidden)
    cast = NewNode("Cast", (hidden,), (name,), {"to": onnx.TensorProto.FLOAT})
    graph.apply(Edit(add=(cast,), constants={hidden: halves}, scope_of=readers[0]))
    whole = {id(node): node for node in readers}.values()
    rebuilt = tuple(_reading(node, {hidden: name}) for node in whole)
    graph.apply(Edit(remove=tuple(whole), add=rebuilt))


def _reading(node: gs.Node, names: Mapping[str, str]) -> NewNode:
    inputs = tuple(names.get(tensor.name, str(tensor.name)) for tensor in node.inputs)
    outputs = tuple(str(tensor.name) for tensor in node.outputs)
    return NewNode(node.op, inputs, outputs, dict(node.attrs), node.domain or "", node.name)


def float_tensors(graph: Graph) -> list[str]:
    """The float32 tensors of the main scope: inputs, and what is computed."""
    inputs = [name for name in graph.inputs if graph.dtype(name) == _SINGLE]
    return inputs + [
        tensor.name
        for node in graph.nodes
        for tensor in node.outputs
        if tensor.name and graph.dtype(tensor.name) == _SINGLE
    ]


def compute_in_halves(
    graph: Graph, kind: str, large: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """Let safe nodes of the main scope compute in 16 bits; return them, and why others do not.

    `large` are tensors that 16 bits cannot hold. Inputs and outputs of the model stay as they are.
    """
    halved, left = [], {}
    for node in graph.nodes:
        reason = _reason(graph, node, kind, large)
        if reason is None:
            halved.append(node)
        else:
            left[_label(node)] = reason
    if halved:
        _Conversion(graph, kind, halved).apply()
    return [_label(node) for node in halved], left


def _label(node: gs.Node) -> str:
    return str(node.name or node.outputs[0].name)


def _reason(graph: Graph, node: gs.Node, kind: str, large: Collection[str]) -> str | None:
    if not is_op(node, *SAFE):
        return f"{node.op} is not safe in {kind}"
    for tensor in (*node.inputs, *node.outputs):
        array = graph.constant(tensor.name) if tensor.name else None
        if tensor.name in large or (
            array is not None and array.dtype == _SINGLE and _too_large(array, kind)
        ):
            return f"{kind} cannot hold the values of {tensor.name!r}"
    if not any(_is_single(graph, tensor) for tensor in node.outputs):
        return "it gives no float32"
    return None


def _is_single(graph: Graph, tensor: gs.Tensor) -> bool:
    return bool(tensor.name) and graph.dtype(tensor.name) == _SINGLE


@dataclass
class _Conversion:
    """One edit that rebuilds the nodes which compute in halves, and those that read them."""

    graph: Graph
    kind: str
    halved: list[gs.Node]
    half_of: dict[str, str] = field(default_factory=dict)
    """For each float32 tensor its half, once there is one."""
    made: list[NewNode] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def apply(self) -> None:
        removed = []
        for node in self.halved:
            self.made.extend(self._casts(node))
            inputs = tuple(self._input(tensor) for tensor in node.inputs)
            outputs = tuple(self._output(tensor) for tensor in node.outputs)
            attrs, domain = dict(node.attrs), node.domain or ""
            self.made.append(NewNode(node.op, inputs, outputs, attrs, domain, node.name))
            removed.append(node)
            self.made.extend(self._back(node))
        self.graph.apply(
            Edit(remove=tuple(removed), add=tuple(self.made), constants=self.constants)
        )
        self.graph.reshape_notice()
        self.graph.prune()

    def _casts(self, node: gs.Node) -> Iterator[NewNode]:
        """Halves of what comes from nodes that compute in single precision."""
        for tensor in node.inputs:
            name = str(tensor.name)
            if not _is_single(self.graph, tensor) or name in self.half_of:
                continue
            self.half_of[name] = self.graph.fresh(f"{name}_half")
            array = self.graph.constant(name)
            if array is not None:
                self.constants[self.half_of[name]] = array.astype(_TYPES[self.kind])
                continue
            to = {"to": int(onnx.helper.np_dtype_to_tensor_dtype(_TYPES[self.kind]))}
            yield NewNode("Cast", (name,), (self.half_of[name],), to)

    def _input(self, tensor: gs.Tensor) -> str:
        single = _is_single(self.graph, tensor)
        return self.half_of[tensor.name] if single else str(tensor.name)

    def _output(self, tensor: gs.Tensor) -> str:
        if not _is_single(self.graph, tensor):
            return str(tensor.name)
        self.half_of[tensor.name] = self.graph.fresh(f"{tensor.name}_half")
        return self.half_of[tensor.name]

    def _back(self, node: gs.Node) -> Iterator[NewNode]:
        """Single precision under the old name, for outputs and for nodes that compute in it."""
        halved = {id(other) for other in self.halved}
        for tensor in node.outputs:
            if not _is_single(self.graph, tensor):
                continue
            others = any(id(r) not in halved for r in self.graph.consumers(tensor.name))
            if others or self.graph.is_output(tensor.name):
                to = {"to": onnx.TensorProto.FLOAT}
                yield NewNode("Cast", (self.half_of[tensor.name],), (tensor.name,), to)
