"""What a model costs: nodes, multiply-accumulates, parameters, bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.cost.dims import Role, bind, open_dims
from graphopt.cost.macs import FREE, MACS, Call, UnknownSize, operator
from graphopt.cost.parameters import parameter_names, size_bytes
from graphopt.ir import Graph

__all__ = ["Cost", "cost", "node_macs"]


@dataclass(frozen=True)
class Cost:
    """What a model costs, for the sizes its inputs declare and a batch of 1 where that is open.

    `nodes` counts the bodies of If, Loop and Scan, but no Constant. `macs` is a lower bound where
    `uncosted` names operators; of an If the dearer branch counts.
    """

    nodes: int
    macs: int
    parameters: int
    weight_bytes: int
    operators: Mapping[str, int]
    uncosted: Mapping[str, int]


def cost(graph: Graph, *, sizes: Mapping[str, int] | None = None) -> Cost:
    """Count `graph`; `sizes` fills in open dimensions besides the batch, by symbol."""
    operators = Counter(operator(node) for node in graph.all_nodes() if node.op != "Constant")
    tally = _tally(graph, sizes)
    constants = graph.constants()
    weights = [constants[name] for name in parameter_names(graph)]
    return Cost(
        nodes=operators.total(),
        macs=tally.total,
        parameters=sum(array.size for array in weights),
        weight_bytes=sum(size_bytes(array) for array in weights),
        operators=dict(sorted(operators.items())),
        uncosted=dict(sorted(tally.uncosted.items())),
    )


def node_macs(graph: Graph, *, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return each costed node's multiply-accumulates under its first output's name.

    Nodes in bodies have entries of their own besides what they add to the If, Loop or Scan they
    belong to; an operator that could not be costed has none.
    """
    return dict(_tally(graph, sizes).macs)


def _tally(graph: Graph, sizes: Mapping[str, int] | None) -> _Tally:
    known = {dim.key: 1 for dim in open_dims(graph) if dim.role is Role.BATCH} | dict(sizes or {})
    tally = _Tally(graph, known)
    if tally.blind and known:
        # Inference with symbols could not follow; with numbers in their place it mostly can.
        tally = _Tally(bind(graph, known), known)
    return tally


class _Tally:
    """One walk over a model; `blind` says that a size was missing somewhere."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int]) -> None:
        self._graph = graph
        self._sizes = sizes
        self.macs: dict[str, int] = {}
        self.uncosted: Counter[str] = Counter()
        self.blind = False
        self.total = self._scope(graph.nodes)

    def _scope(self, nodes: Iterable[gs.Node]) -> int:
        return sum(self._node(node) for node in nodes)

    def _node(self, node: gs.Node) -> int:
        key = operator(node)
        if key in FREE:
            count: int | None = 0
        elif key in _BODIES:
            count = self._bodies(node, _BODIES[key])
        else:
            count = self._product(node, key)
        if count is None:
            self.uncosted[key] += 1
            return 0
        name = next((tensor.name for tensor in node.outputs if tensor.name), node.name)
        self.macs[name] = count
        return count

    def _product(self, node: gs.Node, key: str) -> int | None:
        if key not in MACS:
            return None
        try:
            return MACS[key](Call(node, self._shape))
        except UnknownSize:
            self.blind = True
            return None

    def _bodies(self, node: gs.Node, repeats: _Repeats) -> int | None:
        bodies = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
        once = max((self._scope(body.nodes) for body in bodies), default=0)
        if once == 0:
            return 0
        times = repeats(node, self._graph, self._shape)
        return None if times is None else once * times

    def _shape(self, name: str) -> tuple[int, ...] | None:
        shape = self._graph.shape(name)
        if shape is None:
            return None
        sizes = [self._sizes.get(size) if isinstance(size, str) else size for size in shape]
        known = tuple(size for size in sizes if size is not None)
        return known if len(known) == len(sizes) else None


_Repeats = Callable[[gs.Node, Graph, Callable[[str], tuple[int, ...] | None]], int | None]


def _loop_trips(
    node: gs.Node, graph: Graph, shape: Callable[[str], tuple[int, ...] | None]
) -> int | None:
    """The trip count if it is constant and no condition can end the loop before."""
    trips = graph.constant(node.inputs[0].name) if node.inputs[0].name else None
    if trips is None or (len(node.inputs) > 1 and node.inputs[1].name):
        return None
    return int(np.asarray(trips).item())


def _scan_length(
    node: gs.Node, graph: Graph, shape: Callable[[str], tuple[int, ...] | None]
) -> int | None:
    """The length of the first scanned input, whose axis is an attribute."""
    scanned = int(node.attrs.get("num_scan_inputs", 1))
    axis = (node.attrs.get("scan_input_axes") or [0])[0]
    sizes = shape(node.inputs[-scanned].name)
    return None if sizes is None else sizes[axis]


_BODIES: Mapping[str, _Repeats] = {
    "If": lambda node, graph, shape: 1,
    "Loop": _loop_trips,
    "Scan": _scan_length,
    "SequenceMap": lambda node, graph, shape: None,
}
