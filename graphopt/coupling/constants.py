"""Absorb constant channels into the biases of what reads them, and remove them: outputs stay equal.

Slimming leaves channels whose scale is zero; what comes out of them is relu(beta), a constant. A
consumer that sums over its input takes its share of that constant into its bias. A convolution
that pads does not, unless the constant is zero: at the border it meets the padding's zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.cost import operator
from graphopt.coupling.axes import Fixed
from graphopt.coupling.families import Coupling, couple
from graphopt.coupling.levels import Level, find_levels, is_padded
from graphopt.coupling.masking import MASKS
from graphopt.coupling.products import summed_axis
from graphopt.coupling.removal import Kept, plan_without, remove
from graphopt.ir import Array, Edit, Graph, NewNode, remade

__all__ = ["Absorbed", "absorb_constants"]

_ABSORBING = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators that take constants into a bias."""


@dataclass(frozen=True)
class Absorbed:
    """What was removed, per constant, and which constant channels stay and why."""

    removed: Kept
    refused: Mapping[str, str]


def absorb_constants(graph: Graph) -> Absorbed:
    """Remove every channel that is constant wherever it is read, if that is exact."""
    coupling = couple(graph)
    levels = find_levels(coupling)
    if not levels:
        return Absorbed({}, {})
    going, refused = _decide(coupling, levels)
    plan = plan_without(coupling, going)
    if not plan:
        return Absorbed({}, refused)
    leaving = np.zeros(len(going), np.bool_)
    for name, stays in plan.items():
        family = coupling.family(name)
        leaving[np.delete(family.components, stays)] = True
    shifts = _shifts(coupling, levels, leaving)
    removed = remove(graph, coupling, plan)
    for output, shift in shifts.items():
        node = graph.producer(output)
        assert node is not None, "a consumer is not removed"
        _add_bias(graph, node, shift)
    return Absorbed(removed, refused)


def _decide(
    coupling: Coupling, levels: Mapping[str, Level]
) -> tuple[npt.NDArray[np.bool_], dict[str, str]]:
    """Components that are constant at every consumer that sums over them."""
    component = coupling.solution.component
    constant = np.zeros(len(coupling.solution.pinned), np.bool_)
    varying = np.zeros_like(constant)
    refused: dict[str, str] = {}
    for node in coupling.graph.nodes:
        if operator(node) not in MASKS:
            continue
        for place, axis in enumerate(coupling.axes(node.inputs[0].name) or ()):
            if isinstance(axis, Fixed) or not _sums_over(coupling, node, place):
                continue
            fits, why = _absorbable(coupling, node, place, levels)
            constant[component[axis[fits]]] = True
            varying[component[axis[~fits]]] = True
            level = levels.get(node.inputs[0].name)
            if why and level is not None and (~np.isnan(level.values) & (level.values != 0)).any():
                refused[node.name or node.outputs[0].name] = why
    return constant & ~varying & ~coupling.solution.pinned, refused


def _sums_over(coupling: Coupling, node: gs.Node, place: int) -> bool:
    """Whether an axis of a node's data ends there."""
    axes = coupling.axes(node.inputs[0].name) or ()
    summed = _absorbing_axis(node)
    return summed is None or place == summed % len(axes)


def _absorbing_axis(node: gs.Node) -> int | None:
    """The axis of its data whose constants a node can take into a bias; None for other nodes."""
    return summed_axis(node) if operator(node) in _ABSORBING else None


def _absorbable(
    coupling: Coupling, node: gs.Node, place: int, levels: Mapping[str, Level]
) -> tuple[npt.NDArray[np.bool_], str]:
    axes = coupling.axes(node.inputs[0].name) or ()
    axis = axes[place]
    assert not isinstance(axis, Fixed), "fixed axes have no channels"
    level = levels.get(node.inputs[0].name)
    none = np.zeros(len(axis), np.bool_)
    if level is None or level.axis != place:
        return none, ""
    if _absorbing_axis(node) is None:
        return none, f"{node.op} has no bias to take a constant"
    if coupling.graph.constant(node.inputs[1].name) is None:
        return none, "its weight is computed"
    known = ~np.isnan(level.values)
    if int(node.attrs.get("group", 1)) > 1:
        weight = coupling.graph.constant(node.inputs[1].name)
        assert weight is not None
        return (known, "") if weight.shape[1] == 1 else (none, "its convolution has groups")
    if operator(node) == "Conv" and is_padded(node):
        return known & (level.values == 0), "it pads, so a constant is none at the border"
    return known, ""


def _shifts(
    coupling: Coupling, levels: Mapping[str, Level], leaving: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.float64]]:
    """What each consumer's output gets from the channels that go, over its whole width."""
    component = coupling.solution.component
    found = {}
    for node in coupling.graph.nodes:
        axes = coupling.axes(node.inputs[0].name) if node.inputs else None
        weight = coupling.graph.constant(node.inputs[1].name) if len(node.inputs) > 1 else None
        summed = _absorbing_axis(node)
        if summed is None or not axes or weight is None:
            continue
        axis = axes[summed]
        level = levels.get(node.inputs[0].name)
        grouped = int(node.attrs.get("group", 1)) > 1
        if isinstance(axis, Fixed) or level is None or grouped:
            continue
        values = np.where(leaving[component[axis]], level.values, 0.0)
        if not values.any():
            continue
        shift = _through(node, weight, values)
        out = (coupling.axes(node.outputs[0].name) or ())[1 if node.op == "Conv" else -1]
        if not isinstance(out, Fixed):
            shift = shift[~leaving[component[out]]]
        found[node.outputs[0].name] = shift
    return found


def _through(
    node: gs.Node, weight: Array, values: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """A weight applied to constant inputs."""
    plain = weight.astype(np.float64)
    if node.op == "Conv":
        return np.asarray(plain.reshape(*plain.shape[:2], -1).sum(axis=2) @ values)
    matrix = plain.T if node.op == "MatMul" or not node.attrs.get("transB") else plain
    return np.asarray(matrix @ values * float(node.attrs.get("alpha", 1.0)))


def _add_bias(graph: Graph, node: gs.Node, shift: npt.NDArray[np.float64]) -> None:
    """Add to a node's bias; MatMul, or a bias that is not one value per channel, gets an Add."""
    weight = graph.constant(node.inputs[1].name)
    assert weight is not None, "the weight was a constant before"
    value = shift.astype(weight.dtype)
    has = len(node.inputs) > 2 and bool(node.inputs[2].name)
    bias = graph.constant(node.inputs[2].name) if has else None
    simple = not has or (bias is not None and bias.shape == value.shape)
    if node.op == "MatMul" or not simple or float(node.attrs.get("beta", 1.0)) != 1.0:
        inner = graph.fresh(f"{node.outputs[0].name}_before")
        plain = remade(node, {})
        moved = NewNode(plain.op, plain.inputs, (inner,), plain.attrs, plain.domain, plain.name)
        shape = (-1, *(1,) * (weight.ndim - 2)) if node.op == "Conv" else (-1,)
        add = NewNode("Add", (inner, value.reshape(shape)), (node.outputs[0].name,))
        graph.apply(Edit(remove=(node,), add=(moved, add)))
        return
    total = value if bias is None else np.add(bias, value, dtype=weight.dtype)
    graph.apply(Edit(remove=(node,), add=(remade(node, {2: total}),)))
