"""The reference a cut is checked against: the whole graph, blind to the removed channels.

Whatever sums over a removed channel gets a zero in its place, which is the same as zeroing the
weights that read it. Whatever normalises or reduces over an axis of removed channels does so over
the kept ones only. Everything else is left as it is, so the two graphs differ in every size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.cost import operator
from graphopt.coupling.axes import Axis, Fixed
from graphopt.coupling.families import Coupling
from graphopt.coupling.products import einsum_terms
from graphopt.coupling.removal import Plan, kept_components
from graphopt.coupling.repairs import Shrunk
from graphopt.errors import EditError
from graphopt.ir import Array, Edit, Graph, NewNode, remade

__all__ = ["MASKS", "mask"]


def mask(coupling: Coupling, plan: Plan) -> Graph:
    """A copy of the coupled graph that ignores the removed channels but still computes them."""
    keep = kept_components(coupling, plan)[coupling.solution.component]
    graph = coupling.graph.clone()
    for node in list(graph.nodes):
        row = MASKS.get(operator(node))
        view = Shrunk(node, coupling.wiring, coupling.sizes, keep)
        if row is None or not view.touched:
            continue
        edit = row(graph, view)
        if edit is not None:
            graph.apply(edit)
    graph.reshape_notice()
    return graph


_Mask = Callable[[Graph, Shrunk], Edit | None]


def _zeroed(graph: Graph, view: Shrunk, index: int, places: list[int]) -> Edit | None:
    """Multiply an input by 0 where a removed channel would be summed."""
    axes = view.axes(index)
    places = [place for place in places if view.cut(axes[place])]
    if not places:
        return None
    node, source = view.node, view.node.inputs[index].name
    dtype = graph.dtype(source) or _others_dtype(graph, node)
    if dtype is None or dtype.kind != "f":
        raise EditError(f"mask: the input of {node.op} {node.name!r} is not of a floating type")
    factor = np.ones((1,) * len(axes), dtype)
    for place in places:
        shape = [-1 if place % len(axes) == at else 1 for at in range(len(axes))]
        factor = factor * view.mask(axes[place]).reshape(shape).astype(dtype)
    name = graph.fresh(f"{source}_masked")
    product = NewNode("Mul", (source, factor), (name,))
    return Edit(remove=(node,), add=(product, _reading(node, {index: name})))


def _others_dtype(graph: Graph, node: gs.Node) -> np.dtype[np.generic] | None:
    """The type of another input, where operators of other domains leave one unknown."""
    found = (graph.dtype(tensor.name) for tensor in node.inputs if tensor.name)
    return next((dtype for dtype in found if dtype is not None), None)


def _reading(node: gs.Node, names: Mapping[int, str]) -> NewNode:
    new = remade(node, {})
    inputs = [names.get(place, entry) for place, entry in enumerate(new.inputs)]
    return NewNode(new.op, tuple(inputs), new.outputs, new.attrs, new.domain, new.name)


def summed(index: int, place: int) -> _Mask:
    """A row for an operator that sums over one axis of one input."""

    def row(graph: Graph, view: Shrunk) -> Edit | None:
        return _zeroed(graph, view, index, [place % len(view.axes(index))])

    return row


def general(graph: Graph, view: Shrunk) -> Edit | None:
    return _zeroed(graph, view, 0, [0 if view.node.attrs.get("transA") else 1])


def fused(graph: Graph, view: Shrunk) -> Edit | None:
    return _zeroed(graph, view, 0, [-2 if view.node.attrs.get("transA") else -1])


def requantized(graph: Graph, view: Shrunk) -> Edit | None:
    """A scale over everything is that of the kept channels, as it takes in zero anyway."""
    places = [place for place, axis in enumerate(view.axes(0)) if view.cut(axis)]
    return _zeroed(graph, view, 0, places)


def einsum(graph: Graph, view: Shrunk) -> Edit | None:
    equation = view.node.attrs["equation"]
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    ranks = [len(view.axes(index)) for index in range(len(view.node.inputs))]
    terms, result = einsum_terms(text, ranks)
    inner = {name for labels in terms for name in labels} - set(result)
    places = [place for place, name in enumerate(terms[0]) if name in inner]
    return _zeroed(graph, view, 0, places)


def integer(data: int, weight: int, zero: int, axis: int) -> _Mask:
    """A row for quantized weights: those that read a removed channel become their zero point."""

    def row(graph: Graph, view: Shrunk) -> Edit | None:
        source = view.axes(data)
        contracted = source[1] if axis == 1 else source[-1]
        array = graph.constant(view.node.inputs[weight].name)
        if not view.cut(contracted):
            return None
        points = None
        if len(view.node.inputs) > zero and view.node.inputs[zero].name:
            points = graph.constant(view.node.inputs[zero].name)
        if array is None or int(view.node.attrs.get("group", 1)) != 1:
            raise EditError(f"mask: the weight of {view.node.op} {view.node.name!r} is computed")
        level = np.zeros(1, array.dtype) if points is None else points.reshape(-1)
        level = level.reshape([-1] + [1] * (array.ndim - 1)) if axis == 1 else level
        shape = [-1 if at == axis % array.ndim else 1 for at in range(array.ndim)]
        blind = np.where(view.mask(contracted).reshape(shape), array, level).astype(array.dtype)
        return Edit(remove=(view.node,), add=(remade(view.node, {weight: blind}),))

    return row


def recurrent(graph: Graph, view: Shrunk) -> Edit | None:
    """The input is summed over, and so are the hidden units: their columns of R become zero."""
    edit = _zeroed(graph, view, 0, [2])
    hidden = view.axes(2)[2]
    if not view.cut(hidden):
        return edit
    name = view.node.inputs[2].name
    weights, before = graph.constant(name), tuple[NewNode, ...]()
    blind: str | Array
    if weights is not None:
        blind = weights * view.mask(hidden).astype(weights.dtype)
    else:
        blind = graph.fresh(f"{name}_masked")
        mask = view.mask(hidden).astype(graph.dtype(name) or np.dtype(np.float32))
        before = (NewNode("Mul", (name, mask), (blind,)),)
    last = remade(view.node, {}) if edit is None else edit.add[-1]
    inputs = tuple(blind if place == 2 else entry for place, entry in enumerate(last.inputs))
    first = () if edit is None else edit.add[:-1]
    return Edit(remove=(view.node,), add=(*before, *first, replace(last, inputs=inputs)))


def reduced(graph: Graph, view: Shrunk) -> Edit | None:
    """A reduction sees the kept channels only."""
    data, out = view.axes(0), view.made()
    outs = {id(axis) for axis in out}
    places = [p for p, axis in enumerate(data) if view.cut(axis) and id(axis) not in outs]
    if not places:
        return None
    add: list[NewNode] = []
    name = view.node.inputs[0].name
    for place in places:
        name = _picked(graph, add, name, view.mask(data[place]), place)
    return Edit(remove=(view.node,), add=(*add, _reading(view.node, {0: name})))


def _picked(
    graph: Graph, add: list[NewNode], name: str, stays: npt.NDArray[np.bool_], place: int
) -> str:
    made = graph.fresh(f"{name}_kept")
    add.append(NewNode("Gather", (name, np.flatnonzero(stays)), (made,), {"axis": place}))
    return made


def normalised(first: Callable[[gs.Node, int], Sequence[int]]) -> _Mask:
    """A row for an operator that normalises over some axes, given its node and rank.

    The kept channels are picked, normalised, and put back in their places among zeros.
    """

    def row(graph: Graph, view: Shrunk) -> Edit | None:
        data = view.axes(0)
        places = [p for p in first(view.node, len(data)) if view.cut(data[p])]
        if not places:
            return None
        add: list[NewNode] = []
        names: dict[int, str] = {}
        for index, tensor in enumerate(view.node.inputs):
            axes = view.axes(index) if tensor.name else ()
            for place in places:
                at = _aligned(view, index, axes, data, place)
                if at is not None:
                    source = names.get(index, tensor.name)
                    names[index] = _picked(graph, add, source, view.mask(data[place]), at)
        core = _reading(view.node, names)
        wide = {0, len(core.outputs) - 1 if len(core.outputs) > 3 else 0}  # a skip's sum is last
        outputs = [
            graph.fresh(f"{name}_kept") if index in wide and name else name
            for index, name in enumerate(core.outputs)
        ]
        add.append(
            NewNode(core.op, core.inputs, tuple(outputs), core.attrs, core.domain, core.name)
        )
        for index in sorted(wide):
            result, inner = view.node.outputs[index].name, outputs[index]
            for number, place in enumerate(places if result else ()):
                last = number == len(places) - 1
                target = result if last else graph.fresh(f"{result}_restored")
                _restored(graph, add, inner, target, view.mask(data[place]), place)
                inner = target
        return Edit(remove=(view.node,), add=tuple(add))

    return row


def _aligned(
    view: Shrunk, index: int, axes: tuple[Axis, ...], data: tuple[Axis, ...], place: int
) -> int | None:
    """The axis of an input that goes along with an axis of the first."""
    if index == 0:
        return place
    for at, axis in enumerate(axes):
        if isinstance(axis, Fixed) or isinstance(data[place], Fixed):
            continue
        back = len(axes) - at == len(data) - place
        if (back or len(axes) == 1) and len(axis) == len(view.mask(data[place])):
            return at
    return None


def _restored(
    graph: Graph,
    add: list[NewNode],
    name: str,
    target: str,
    stays: npt.NDArray[np.bool_],
    place: int,
) -> None:
    """Put kept channels back in their places, with zeros at the others."""
    one, zero, wide = (graph.fresh(f"{target}_{part}") for part in ("one", "zero", "wide"))
    axis = {"axis": place}
    where: Array = np.where(stays, np.cumsum(stays) - 1, stays.sum()).astype(np.int64)
    dtype = graph.dtype(target) or np.dtype(np.float32)
    add.append(NewNode("Gather", (name, np.zeros(1, np.int64)), (one,), axis))
    add.append(NewNode("Mul", (one, np.zeros((), dtype)), (zero,)))
    add.append(NewNode("Concat", (name, zero), (wide,), axis))
    add.append(NewNode("Gather", (wide, where), (target,), axis))


def group_norm(graph: Graph, view: Shrunk) -> Edit | None:
    """Groups that go or stay whole are none of each other's business."""
    rows = view.mask(view.axes(0)[1]).reshape(int(view.node.attrs["num_groups"]), -1)
    if (rows.all(axis=1) | ~rows.any(axis=1)).all():
        return None
    return normalised(_channels)(graph, view)


def _from_axis(node: gs.Node, rank: int) -> range:
    return range(int(node.attrs.get("axis", -1)) % rank, rank)


def _one_axis(node: gs.Node, rank: int) -> range:
    axis = int(node.attrs.get("axis", -1)) % rank
    return range(axis, axis + 1)


def _listed(node: gs.Node, rank: int) -> list[int]:
    return [int(axis) % rank for axis in node.attrs.get("axes", (0, 2, 3))]


def _channels(node: gs.Node, rank: int) -> range:
    return range(1, 2)


_REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
"""

MASKS: Mapping[str, _Mask] = {
    **dict.fromkeys(_REDUCTIONS.split(), reduced),
    "Conv": summed(0, 1),
    "ConvInteger": integer(0, 1, 3, 1),
    "ConvTranspose": summed(0, 1),
    "DynamicQuantizeLinear": requantized,
    "Einsum": einsum,
    "GRU": recurrent,
    "Gemm": general,
    "GroupNormalization": group_norm,
    "LRN": normalised(_channels),
    "LSTM": recurrent,
    "LayerNormalization": normalised(_from_axis),
    "LpNormalization": normalised(_one_axis),
    "MatMul": summed(0, -1),
    "MatMulInteger": integer(0, 1, 3, -2),
    "MeanVarianceNormalization": normalised(_listed),
    "QLinearConv": integer(0, 3, 5, 1),
    "QLinearMatMul": integer(0, 3, 5, -2),
    "RMSNormalization": normalised(_from_axis),
    "RNN": recurrent,
    "SimplifiedLayerNormalization": normalised(_from_axis),
    "com.microsoft:Attention": summed(0, 2),
    "com.microsoft:DynamicQuantizeMatMul": summed(0, -1),
    "com.microsoft:FusedConv": summed(0, 1),
    "com.microsoft:FusedGemm": general,
    "com.microsoft:FusedMatMul": fused,
    "com.microsoft:MatMulIntegerToFloat": integer(0, 1, 5, -2),
    "com.microsoft:SimplifiedLayerNormalization": normalised(_from_axis),
    "com.microsoft:SkipLayerNormalization": normalised(_from_axis),
    "com.microsoft:SkipSimplifiedLayerNormalization": normalised(_from_axis),
    "com.microsoft:TransposeMatMul": fused,
}
"""Operators that read several indices of an axis at once; the others work index by index."""
