"""Weights, or whole networks, in 16-bit floats.

Stored: weights are halves in the file and cast back where they are read, which ONNX Runtime does
once, when it loads them. Computed: nodes whose operator is safe run on halves, with casts where
they meet others; a value that halves cannot hold, be it too large or too small, keeps the nodes
around it in single precision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.quantize.placement import is_quantized_op
from graphopt.rewrite.matching import is_op

__all__ = ["LARGEST", "LEAST", "SAFE", "compute_in_halves", "float_tensors", "store_halves"]

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
LEAST = {"float16": 2.0**-14, "bfloat16": 2.0**-126}
"""The smallest number with all its digits; below they go one after the other."""

_DIGITS: Mapping[str, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""How far, relative to it, a number with all its digits is moved at most."""
_TYPES: Mapping[str, np.dtype[np.generic]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_SINGLE = np.dtype(np.float32)

_WORTH = 64
"""Elements; the cast of a smaller weight takes more bytes than it saves."""

_CHUNK = 1 << 20
"""Elements of a constant that are looked at together."""

_GRIDS = ("DequantizeLinear", "QuantizeLinear")

SAFE = frozenset(
    """
    Abs Add AveragePool Clip Concat Conv ConvTranspose DepthToSpace Div Dropout Elu Expand Flatten
    Gather Gemm GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LayerNormalization
    LeakyRelu MatMul Max MaxPool Min Mul Neg PRelu Pad Relu Reshape Sigmoid Slice Softmax
    SpaceToDepth Split Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)
"""Operators that lose nothing but digits on halves: what adds up many numbers, raises to powers,
takes roots of what may be next to nothing, or compares indices is not among them."""


def _unfit(array: Array, kind: str) -> str | None:
    """Why 16 bits cannot hold a constant, whose infinite values they can; None if they can.

    Small numbers among larger ones may go; they must not make up what the constant is.
    """
    energy = lost = peak = 0.0
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        values = flat[start : start + _CHUNK].astype(np.float64)
        values = values[np.isfinite(values)]
        largest = float(np.abs(values).max(initial=0.0))
        if largest > LARGEST[kind]:
            return f"{largest:.4g} is larger than {kind} can hold"
        peak = max(peak, largest)
        energy += float(np.square(values).sum())
        lost += float(np.square(values - values.astype(_TYPES[kind]).astype(np.float64)).sum())
    if lost > _DIGITS[kind] ** 2 * energy:
        return f"its values, up to {peak:.4g}, are too small for {kind}"
    return None


def _unfit_for(graph: Graph, node: gs.Node, name: str, kind: str) -> str | None:
    """Why a node cannot read a float32 constant in 16 bits; None if it can."""
    array = graph.constant(name)
    if array is None or array.dtype != _SINGLE:
        return None
    if _divides(node, name) and bool(((array.astype(_TYPES[kind]) == 0) & (array != 0)).any()):
        return f"it divides, and {kind} makes some of it 0"
    if is_op(node, *_GRIDS) and not node.attrs.get("block_size", 0):
        return "it is the scale of a grid"
    return None


def _divides(node: gs.Node, name: str) -> bool:
    return is_op(node, "Div") and node.inputs[1].name == name


def store_halves(graph: Graph, kind: str) -> tuple[list[str], dict[str, str]]:
    """Store every float32 weight in 16 bits; return their names, and why others stay."""
    stored, left = [], {}
    for name, array in graph.constants().items():
        readers = graph.consumers(name)
        if array.dtype != _SINGLE or array.size < _WORTH or not readers:
            continue
        reason = _kept(graph, name, kind)
        if reason is None:
            stored.append(name)
            _store(graph, name, array.astype(_TYPES[kind]))
        else:
            left[name] = reason
    return stored, left


def _kept(graph: Graph, name: str, kind: str) -> str | None:
    """Why a float32 constant is not stored in 16 bits; None if it can be."""
    array, readers = graph.constant(name), graph.consumers(name)
    assert array is not None, "only constants are asked for"
    if graph.is_output(name):
        return "it is an output"
    if len({id(graph.scope_of(node)) for node in readers}) > 1:
        return "it is read inside a body and outside"
    reasons = (_unfit_for(graph, node, name, kind) for node in readers)
    return next((reason for reason in reasons if reason), None) or _unfit(array, kind)


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
    graph: Graph, kind: str, outside: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """Let safe nodes of the main scope compute in 16 bits; return them, and why others do not.

    `outside` are tensors that 16 bits cannot hold. Inputs and outputs of the model stay.
    """
    halved, left = [], {}
    for node in graph.nodes:
        reason = _reason(graph, node, kind, outside)
        if reason is None:
            halved.append(node)
        else:
            left[_label(node)] = reason
    if halved:
        _Conversion(graph, kind, halved).apply()
    return [_label(node) for node in halved], left


def _label(node: gs.Node) -> str:
    return str(node.name or node.outputs[0].name)


def _reason(graph: Graph, node: gs.Node, kind: str, outside: Collection[str]) -> str | None:
    if not is_op(node, *SAFE):
        return f"{node.op} is not safe in {kind}"
    if not any(_is_single(graph, tensor) for tensor in node.outputs):
        return "it gives no float32"
    if not _takes(graph, node, kind):
        return f"{node.op} takes no {kind} in operator set {graph.opset}"
    if _beside_integers(graph, node):
        return "it is among what computes on integers"
    for name in (str(tensor.name) for tensor in (*node.inputs, *node.outputs) if tensor.name):
        array = graph.constant(name)
        unfit = array is not None and array.dtype == _SINGLE and _unfit(array, kind)
        if name in outside or unfit or _unfit_for(graph, node, name, kind):
            return f"{kind} cannot hold the values of {name!r}"
        if array is None and _divides(node, name):
            return f"it divides by {name!r}, which {kind} may make 0"
    return None


def _takes(graph: Graph, node: gs.Node, kind: str) -> bool:
    """Whether the operator is defined for a type, in the operator set that the graph has."""
    if not onnx.defs.has(node.op, graph.opset, ""):
        return False
    schema = onnx.defs.get_schema(node.op, graph.opset, "")
    allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
    return all(
        f"tensor({kind})" in allowed.get(formal[min(place, len(formal) - 1)].type_str, ())
        for formal, tensors in ((schema.inputs, node.inputs), (schema.outputs, node.outputs))
        for place, tensor in enumerate(tensors)
        if _is_single(graph, tensor)
    )


def _beside_integers(graph: Graph, node: gs.Node) -> bool:
    """Whether a node makes or reads what is converted to integers or from them.

    ONNX Runtime makes one node of these, and sums of integers are more than halves can hold.
    """
    makers = [graph.producer(tensor.name) for tensor in node.inputs if tensor.name]
    makers += [
        graph.producer(maker.inputs[0].name) for maker in makers if maker and is_op(maker, "Cast")
    ]
    readers = [r for tensor in node.outputs if tensor.name for r in graph.consumers(tensor.name)]
    return any(other is not None and is_quantized_op(other) for other in (*makers, *readers))


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
