"""Recognise layer, instance and root-mean-square normalization in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, Rule, rewrite
from graphopt.rewrite.affine import (
    AFFINE_OPS,
    Vector,
    constant_affine,
    elementwise_affine,
    in_type,
)
from graphopt.rewrite.matching import data_source, dying, sharing
from graphopt.rewrite.norms import read_norm

__all__ = ["FuseNorms"]


@dataclass(frozen=True)
class FuseNorms(Pass):
    """Recognise normalizations that are written in pieces.

    (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) becomes InstanceNormalization where the
    means run over all spatial axes, of which there are two or more, and LayerNormalization
    (operator set 17) where they run over other last axes; without the subtraction,
    RMSNormalization (operator set 23). Factors and offsets after these operators fold into their
    scale and bias.
    """

    name: ClassVar[str] = "fuse-norms"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules: dict[str, tuple[Rule, ...]] = dict.fromkeys(AFFINE_OPS, (into_norm,))
        context.record(
            rewrite(graph, {**rules, "Div": (norm, into_norm), "Mul": (norm, into_norm)})
        )


def norm(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace a tensor divided by its standard deviation, or by its root mean square."""
    found = read_norm(graph, node)
    shape = None if found is None else graph.shape(found.data)
    if found is None or shape is None or graph.dtype(found.data) != np.float32:
        return None
    sizes = [dim for axis, dim in enumerate(shape) if axis in found.axes]
    if found.centred and len(shape) > 3 and found.axes == tuple(range(2, len(shape))):
        op, least, sizes = "InstanceNormalization", 6, [shape[1]]
    elif found.axes == tuple(range(len(shape) - len(found.axes), len(shape))):
        op, least = ("LayerNormalization", 17) if found.centred else ("RMSNormalization", 23)
    else:
        return None
    if graph.opset < least:
        return Refusal("norm", node.name, f"{op} came with operator set {least}")
    counts = [dim for dim in sizes if isinstance(dim, int)]
    if len(counts) != len(sizes):
        return Refusal("norm", node.name, f"the sizes are not known: {shape}")
    scale = np.ones(counts, np.float32)
    attrs: dict[str, object] = {"epsilon": float(np.float32(found.epsilon))}
    inputs: list[str | Array] = [found.data, scale]
    if op == "InstanceNormalization":
        inputs.append(np.zeros(counts, np.float32))
    else:
        attrs["axis"] = -len(counts)
    new = NewNode(op, tuple(inputs), (node.outputs[0].name,), attrs, name=node.name)
    return Edit(remove=dying(graph, (node,), found.data), add=(new,))


_NORMS = ("InstanceNormalization", "LayerNormalization", "RMSNormalization")


def into_norm(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Fold a factor or an offset into the scale and bias of the normalization before it."""
    maker = data_source(graph, node, *_NORMS)
    scale = None if maker is None else graph.constant(maker.inputs[1].name)
    if maker is None or scale is None or not np.issubdtype(scale.dtype, np.floating):
        return None
    change = _change(graph, node, maker, scale.shape)
    if change is None:
        return None
    if reason := sharing(graph, maker):
        return Refusal("into_norm", node.name, reason)
    old = graph.constant(maker.inputs[2].name) if len(maker.inputs) > 2 else np.zeros_like(scale)
    lacks_bias = maker.op == "RMSNormalization"
    if old is None or (lacks_bias and np.any(change[1])):
        return Refusal("into_norm", node.name, "the bias is computed, or there is none")
    factor = scale.astype(np.float64) * change[0]
    term = old.astype(np.float64) * change[0] + change[1]
    arrays = [in_type(array, scale.dtype) for array in (factor, term)][: 1 if lacks_bias else 2]
    fitting = [array for array in arrays if array is not None]
    if len(fitting) < len(arrays):
        return Refusal("into_norm", node.name, f"the result is not finite in {scale.dtype}")
    inputs, outputs = (maker.inputs[0].name, *fitting), (node.outputs[0].name,)
    new = NewNode(maker.op, inputs, outputs, maker.attrs, name=maker.name)
    return Edit(remove=(maker, node), add=(new,))


def _change(
    graph: Graph, node: gs.Node, maker: gs.Node, sizes: tuple[int, ...]
) -> tuple[Vector, Vector] | None:
    """Factor and offset in the shape of the normalization's scale; None if they do not fit."""
    shape = graph.shape(node.outputs[0].name)
    if shape is None:
        return None
    per_channel = maker.op == "InstanceNormalization"
    change = (
        constant_affine(graph, node, 1 - len(shape))
        if per_channel
        else elementwise_affine(graph, node)
    )
    if change is None:
        return None
    whole = [_along(value, sizes) for value in (change.scale, change.shift)]
    return None if whole[0] is None or whole[1] is None else (whole[0], whole[1])


def _along(value: Vector, sizes: tuple[int, ...]) -> Vector | None:
    """A constant in the shape `sizes`, which its last axes must fit."""
    extra = value.ndim - len(sizes)
    if extra > 0 and any(size != 1 for size in value.shape[:extra]):
        return None
    value = value.reshape(value.shape[max(extra, 0) :])
    pairs: list[tuple[int, int]] = list(zip(value.shape[::-1], sizes[::-1], strict=False))
    return np.broadcast_to(value, sizes) if all(one in (1, size) for one, size in pairs) else None
