"""Channels that nothing reads: every weight that would multiply them is zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.cost import operator
from graphopt.coupling.axes import Fixed
from graphopt.coupling.families import Coupling, couple
from graphopt.coupling.masking import MASKS
from graphopt.coupling.products import summed_axis
from graphopt.coupling.removal import Kept, plan_without, remove
from graphopt.ir import Array, Graph

__all__ = ["remove_unread"]

_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
"""Operators that read what they make in the next step, through their third input."""


def remove_unread(graph: Graph) -> Kept:
    """Remove every channel whose readers all weigh it with zero; return what was kept of what."""
    coupling = couple(graph)
    going = _unread(coupling)
    plan = plan_without(coupling, going)
    return remove(graph, coupling, plan) if plan else {}


def _unread(coupling: Coupling) -> npt.NDArray[np.bool_]:
    """Components that are multiplied by zeros wherever they are read."""
    component = coupling.solution.component
    unread = np.zeros(len(coupling.solution.pinned), np.bool_)
    read = np.zeros_like(unread)
    for node in coupling.graph.nodes:
        if operator(node) not in MASKS:
            continue
        if operator(node) in _RECURRENT:
            for axis in coupling.axes(node.inputs[2].name) or ():
                if not isinstance(axis, Fixed):
                    read[component[axis]] = True
        axes = coupling.axes(node.inputs[0].name) or ()
        for place, axis in enumerate(axes):
            if isinstance(axis, Fixed):
                continue
            used = _used(coupling.graph, node, len(axes), place, len(axis))
            if used is None:
                continue
            unread[component[axis[~used]]] = True
            read[component[axis[used]]] = True
    return unread & ~read & ~coupling.solution.pinned


def _used(
    graph: Graph, node: gs.Node, rank: int, place: int, width: int
) -> npt.NDArray[np.bool_] | None:
    """Which channels of an axis a node makes use of; None where the axis only passes through."""
    everything = np.ones(width, np.bool_)
    summed = summed_axis(node)
    if summed is None:
        return everything
    if place != summed % rank:
        return None
    weight = graph.constant(node.inputs[1].name)
    if weight is None or int(node.attrs.get("group", 1)) > 1:
        return everything
    return _columns(node, weight)


def _columns(node: gs.Node, weight: Array) -> npt.NDArray[np.bool_]:
    """Which inputs a weight has anything but zeros for."""
    axis = 1 if node.op == "Conv" or node.attrs.get("transB") else 0
    if node.op == "MatMul":
        axis = weight.ndim - 2
    others = tuple(place for place in range(weight.ndim) if place != axis % weight.ndim)
    return np.asarray(np.any(weight != 0, axis=others), np.bool_)
