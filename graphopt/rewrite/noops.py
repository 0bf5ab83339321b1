"""Which input an operator hands on unchanged: one row per operator that can."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir import Graph
from graphopt.rewrite.matching import integers, keeps_shape
from graphopt.rewrite.shaping import count_open, equal_shapes
from graphopt.rewrite.windows import TO_THE_END

__all__ = ["PASSED_ON"]

Row = Callable[[Graph, gs.Node], int | None]

_EXACT_COORDINATES = frozenset(
    {"align_corners", "asymmetric", "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel"}
)
"""Coordinate transformations that map each place to itself when nothing is scaled."""


def _always(graph: Graph, node: gs.Node) -> int | None:
    return 0


def _alone(graph: Graph, node: gs.Node) -> int | None:
    """One part is the whole."""
    return 0 if len(node.inputs) == len(node.outputs) == 1 else None


def _split(graph: Graph, node: gs.Node) -> int | None:
    return 0 if len(node.outputs) == 1 else None


def _dropout(graph: Graph, node: gs.Node) -> int | None:
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return 0
    training = graph.constant(node.inputs[2].name)
    return 0 if training is not None and not training.any() else None


def _cast(graph: Graph, node: gs.Node) -> int | None:
    target = onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"]))
    return 0 if graph.dtype(node.inputs[0].name) == target else None


def _cast_like(graph: Graph, node: gs.Node) -> int | None:
    dtype, target = (graph.dtype(tensor.name) for tensor in node.inputs)
    return 0 if dtype is not None and dtype == target else None


def _pad(graph: Graph, node: gs.Node) -> int | None:
    pads = integers(graph, node, 1, "pads")
    return 0 if pads is not None and not any(pads) else None


def _same_order(graph: Graph, node: gs.Node) -> int | None:
    """The elements keep their order and number, so one size may be unknown."""
    before, after = graph.shape(node.inputs[0].name), graph.shape(node.outputs[0].name)
    if before is None or after is None or len(before) != len(after) or 0 in before:
        return None
    return 0 if count_open(before, after) <= 1 else None


def _same_shape(graph: Graph, node: gs.Node) -> int | None:
    """Reductions, and pooling over all of an image: what is reduced has size 1."""
    before, after = graph.shape(node.inputs[0].name), graph.shape(node.outputs[0].name)
    return 0 if equal_shapes(before, after) else None


def _expand(graph: Graph, node: gs.Node) -> int | None:
    target, shape = graph.known(node.inputs[1].name), graph.shape(node.inputs[0].name)
    if target is None or shape is None or target.size > len(shape):
        return None
    pairs = zip(target, shape[len(shape) - target.size :], strict=True)
    return 0 if all(new == 1 or (new is not None and new == old) for new, old in pairs) else None


def _tile(graph: Graph, node: gs.Node) -> int | None:
    repeats = integers(graph, node, 1, "repeats")
    return 0 if repeats is not None and set(repeats) <= {1} else None


def _transpose(graph: Graph, node: gs.Node) -> int | None:
    order = node.attrs.get("perm")
    if order is None:
        shape = graph.shape(node.inputs[0].name)
        return 0 if shape is not None and len(shape) < 2 else None
    return 0 if list(order) == sorted(order) else None


def _slice(graph: Graph, node: gs.Node) -> int | None:
    shape = graph.shape(node.inputs[0].name)
    starts = integers(graph, node, 1, "starts")
    ends = node.attrs.get("ends") or graph.known(node.inputs[2].name)
    steps = integers(graph, node, 4, "steps") if len(node.inputs) > 4 else (1,)
    if starts is None or ends is None or steps is None or set(steps) != {1}:
        return None
    given_axes = len(node.inputs) > 3 or "axes" in node.attrs
    axes = integers(graph, node, 3, "axes") if given_axes else tuple(range(len(starts)))
    if axes is None:
        return None
    sizes = [None if shape is None else shape[axis] for axis in axes]
    whole = (_is_whole(*bounds) for bounds in zip(starts, ends, sizes, strict=True))
    return 0 if all(whole) else None


def _is_whole(start: int, end: object, size: int | str | None) -> bool:
    begins = start == 0 or (isinstance(size, int) and start <= -size)
    if isinstance(end, int):
        return begins and (end >= TO_THE_END or (isinstance(size, int) and end >= size))
    return begins and end is not None and end == size


def _gather(graph: Graph, node: gs.Node) -> int | None:
    shape, picks = graph.shape(node.inputs[0].name), graph.constant(node.inputs[1].name)
    if shape is None or picks is None or picks.ndim != 1:
        return None
    size = shape[int(node.attrs.get("axis", 0))]
    return 0 if size == picks.size and bool((picks == np.arange(picks.size)).all()) else None


def _neutral(value: float, *sides: int) -> Row:
    """An operand on one of `sides` that is `value` throughout and does not widen the other."""

    def row(graph: Graph, node: gs.Node) -> int | None:
        for side in sides:
            constant = graph.constant(node.inputs[side].name)
            if constant is None or not constant.size or constant.reshape(-1)[0] != value:
                continue
            data = node.inputs[1 - side].name
            if bool((constant == value).all()) and keeps_shape(graph, data, constant):
                return 1 - side
        return None

    return row


def _where(graph: Graph, node: gs.Node) -> int | None:
    condition = graph.constant(node.inputs[0].name)
    if condition is None or not condition.size or condition.any() != condition.all():
        return None
    kept = 1 if condition.all() else 2
    shape = graph.shape(node.inputs[kept].name)
    return kept if equal_shapes(shape, graph.shape(node.outputs[0].name)) else None


def _resize(graph: Graph, node: gs.Node) -> int | None:
    if node.attrs.get("coordinate_transformation_mode", "half_pixel") not in _EXACT_COORDINATES:
        return None
    place = 1 if len(node.inputs) == 2 else 2
    if "scales" in node.attrs or (len(node.inputs) > place and node.inputs[place].name):
        given = node.attrs.get("scales") or graph.constant(node.inputs[place].name)
        return 0 if given is not None and len(given) and all(s == 1 for s in given) else None
    return _same_shape(graph, node)


def _pool(graph: Graph, node: gs.Node) -> int | None:
    window = {*node.attrs["kernel_shape"], *node.attrs.get("strides", ())}
    return 0 if window == {1} and not any(node.attrs.get("pads", ())) else None


def _clip(graph: Graph, node: gs.Node) -> int | None:
    bounded = {"min", "max"} & node.attrs.keys() or any(t.name for t in node.inputs[1:])
    return None if bounded else 0


PASSED_ON: Mapping[str, Row] = {
    "Add": _neutral(0, 0, 1),
    "And": _neutral(1, 0, 1),
    "AveragePool": _pool,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Concat": _alone,
    "Div": _neutral(1, 1),
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _same_order,
    "Gather": _gather,
    "GlobalAveragePool": _same_shape,
    "GlobalMaxPool": _same_shape,
    "Identity": _always,
    "Max": _alone,
    "MaxPool": _pool,
    "Mean": _alone,
    "Min": _alone,
    "Mul": _neutral(1, 0, 1),
    "Or": _neutral(0, 0, 1),
    "Pad": _pad,
    "Pow": _neutral(1, 1),
    "ReduceMax": _same_shape,
    "ReduceMean": _same_shape,
    "ReduceMin": _same_shape,
    "ReduceProd": _same_shape,
    "ReduceSum": _same_shape,
    "Reshape": _same_order,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _same_order,
    "Sub": _neutral(0, 1),
    "Sum": _alone,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _same_order,
    "Upsample": _resize,
    "Where": _where,
}
"""The index of the input that equals the first output, None where that is not certain."""
