"""Store weights as integers, read back as floats where they are used: nothing else changes.

How a weight is stored follows from who reads it; a weight that several read is stored once. A
MatMul or Gemm that reads (in, out) codes becomes ONNX Runtime's MatMulNBits when it is loaded,
which is why transposed weights are turned. A Gather takes codes and scales of the rows it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.coupling.naming import matching_names
from graphopt.errors import RecipeError
from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.quantize.grid import Grid
from graphopt.rewrite.matching import is_op

__all__ = ["Weight", "choose_weights", "find_weights", "store"]


_FLOATS = (np.float32, np.float16)


@dataclass(frozen=True, eq=False)
class Weight:
    """A float constant that layers read, and how it can be stored.

    channel  the axis of the outputs
    depth    the axis of the inputs, along which blocks are made; None where rows must stay whole
    turn     whether its two axes are to be swapped
    """

    name: str
    nodes: tuple[gs.Node, ...]
    channel: int
    depth: int | None
    turn: bool = False

    @property
    def gathered(self) -> bool:
        """Whether single rows of it are taken."""
        return any(node.op == "Gather" for node in self.nodes)

    def array(self, graph: Graph) -> Array:
        """The values, as they will be stored."""
        array = graph.constant(self.name)
        assert array is not None, "a weight is constant"
        return np.ascontiguousarray(array.T) if self.turn else array


@dataclass(frozen=True)
class _Use:
    """How one operator reads its weight: input, channel axis, depth axis, transposed or not."""

    place: int
    channel: int
    depth: int | None
    transposed: bool = False


def _conv(graph: Graph, node: gs.Node, weight: Array) -> _Use | None:
    return _Use(1, 0, 1)


def _conv_transpose(graph: Graph, node: gs.Node, weight: Array) -> _Use | None:
    return _Use(1, 1, 0)


def _gemm(graph: Graph, node: gs.Node, weight: Array) -> _Use | None:
    return _Use(1, 0, 1, transposed=True) if node.attrs.get("transB", 0) else _Use(1, 1, 0)


def _matmul(graph: Graph, node: gs.Node, weight: Array) -> _Use | None:
    return _Use(1, weight.ndim - 1, weight.ndim - 2) if weight.ndim > 1 else None


def _gather(graph: Graph, node: gs.Node, weight: Array) -> _Use | None:
    rows = weight.ndim == 2 and int(node.attrs.get("axis", 0)) in (0, -2)
    rows = rows and graph.shape(node.inputs[1].name) is not None
    return _Use(0, 0, None) if rows else None


_USES: Mapping[str, Callable[[Graph, gs.Node, Array], _Use | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def find_weights(graph: Graph) -> tuple[tuple[Weight, ...], dict[str, str]]:
    """The weights that can be stored as integers, and why others that layers read cannot."""
    names = dict.fromkeys(
        tensor.name
        for node in graph.all_nodes()
        if is_op(node, *_USES)
        for tensor in node.inputs[:2]
        if tensor.name and _is_weight(graph.constant(tensor.name))
    )
    found, reasons = [], {}
    for name in names:
        weight = _weight(graph, name)
        if isinstance(weight, Weight):
            found.append(weight)
        else:
            reasons[name] = weight
    return tuple(found), reasons


def choose_weights(graph: Graph, patterns: Sequence[str], who: str) -> list[Weight]:
    """The weights that patterns name; raises RecipeError, by `who`, for one that names none."""
    found, reasons = find_weights(graph)
    names = [weight.name for weight in found]
    for pattern in patterns:
        if not matching_names([*names, *reasons], (pattern.removeprefix("!"),)):
            known = ", ".join(names) or "none that can be quantized"
            raise RecipeError(f"{who}: no weight is called {pattern!r}; there are {known}")
    chosen = set(matching_names(names, patterns))
    return [weight for weight in found if weight.name in chosen]


def _is_weight(array: Array | None) -> bool:
    return array is not None and array.dtype in _FLOATS and array.ndim > 1 and array.size > 0


def _weight(graph: Graph, name: str) -> Weight | str:
    array, nodes = graph.constant(name), graph.consumers(name)
    assert array is not None, "only constants are asked for"
    uses = []
    for node in nodes:
        reader = f"{node.op} {(node.name or node.outputs[0].name)!r}"
        use = _USES[node.op](graph, node, array) if is_op(node, *_USES) else None
        if use is None or node.inputs[use.place].name != name:
            return f"{reader} reads it in a way that is not known"
        if sum(tensor.name == name for tensor in node.inputs) > 1:
            return f"{reader} reads it twice"
        if graph.scope_of(node) is not graph.scope_of(nodes[0]):
            return "it is read inside a body and outside"
        uses.append(use)
    if graph.is_output(name):
        return "it is an output"
    if len({use.channel for use in uses}) != 1:
        return "its readers have their channels on different axes"
    if not np.isfinite(array).all():
        return "it is not finite"
    turn = all(use.transposed for use in uses)
    depth = None if any(use.depth is None for use in uses) else uses[0].depth
    channel = uses[0].channel
    if turn:
        channel, depth = 1 - channel, None if depth is None else 1 - depth
    return Weight(name, tuple({id(n): n for n in nodes}.values()), channel, depth, turn)


def store(graph: Graph, weight: Weight, grid: Grid, codes: Array) -> None:
    """Replace a weight by its codes; what is read back has the weight's name, and its type."""
    array = graph.constant(weight.name)
    assert array is not None, "a weight is constant"
    hidden = graph.fresh(f"{weight.name}_codes")
    scale, zero = graph.fresh(f"{weight.name}_scale"), graph.fresh(f"{weight.name}_zero")
    graph.rename(weight.name, hidden)
    constants: dict[str, Array] = {hidden: codes, scale: grid.scale.astype(array.dtype)}
    if np.any(grid.zero != 0):
        constants[zero] = grid.zero
    names = (hidden, scale, *([zero] if zero in constants else []))
    readers = [node for node in weight.nodes if node.op != "Gather"]
    made: list[NewNode] = []
    if readers:
        attrs = {"axis": grid.axis, **({"block_size": grid.block} if grid.block else {})}
        made.append(NewNode("DequantizeLinear", names, (weight.name,), attrs, name=weight.name))
    for node in weight.nodes:
        if node.op == "Gather":
            made.extend(_gathered(graph, node, names, constants))
        else:
            made.append(_reader(node, hidden, weight))
    graph.apply(Edit(remove=weight.nodes, add=tuple(made), constants=constants))


def _reader(node: gs.Node, hidden: str, weight: Weight) -> NewNode:
    inputs = tuple(weight.name if t.name == hidden else str(t.name) for t in node.inputs)
    attrs = {k: v for k, v in node.attrs.items() if not (weight.turn and k == "transB")}
    outputs = tuple(tensor.name for tensor in node.outputs)
    return NewNode(node.op, inputs, outputs, attrs, name=node.name)


def _gathered(
    graph: Graph, node: gs.Node, names: Sequence[str], constants: dict[str, Array]
) -> list[NewNode]:
    """Gather(codes), Gather(scales), DequantizeLinear: a scale for each row, which is one block.

    A single row is no tensor of blocks: it has one scale.
    """
    indices, output = str(node.inputs[1].name), str(node.outputs[0].name)
    single = graph.shape(indices) == ()
    width = constants[names[0]].shape[1]
    made, taken = [], []
    for name in names:
        table = name
        if constants[name].ndim == 1 and not single:
            table = graph.fresh(f"{name}_column")
            constants[table] = constants[name].reshape(-1, 1)
        taken.append(graph.fresh(f"{output}_{name.rpartition('_')[2]}"))
        made.append(NewNode("Gather", (table, indices), (taken[-1],), {"axis": 0}))
    attrs = {} if single else {"axis": -1, "block_size": width}
    made.append(NewNode("DequantizeLinear", tuple(taken), (output,), attrs, name=node.name))
    return made
