"""Write a constant factor and offset between two convolutions as a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.affine import AFFINE_OPS, affine_run, in_type
from graphopt.rewrite.linear import linear_layer
from graphopt.rewrite.matching import data_source, is_op, source

__all__ = ["ConvolveAffine"]

_CHANNEL_AXIS = -3
_ALIGNMENT = 4
"""ONNX Runtime runs depthwise convolutions in its blocked layout from multiples of 4 channels."""


@dataclass(frozen=True)
class ConvolveAffine(Pass):
    """Write s * x + t between two convolutions of images as one depthwise 1x1 convolution.

    ONNX Runtime keeps a convolution in its blocked layout, but leaves that layout and comes back
    for an Add of a constant or a Mul by a number. So only what does not fold into a layer is
    rewritten, and only between convolutions. Costs two parameters and one MAC per channel and
    pixel; made for ONNX Runtime on CPUs.
    """

    name: ClassVar[str] = "convolve-affine"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, dict.fromkeys(AFFINE_OPS, (depthwise,))))


def depthwise(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace conv(s * f(conv(x)) + t) by conv(depthwise(f(conv(x))))."""
    change, gone = affine_run(graph, node, _CHANNEL_AXIS)
    if change is None:
        return None
    shape, dtype = graph.shape(change.data), graph.dtype(change.data)
    if shape is None or len(shape) != 4 or dtype != np.float32:
        return None
    channels = shape[1]
    if not isinstance(channels, int) or channels % _ALIGNMENT or not change.shifts():
        return None
    if not _after_conv(graph, gone[0]) or not _before_conv(graph, node):
        return None
    wide = [np.broadcast_to(values, (channels,)) for values in (change.scale, change.shift)]
    scale, shift = (in_type(values, dtype) for values in wide)
    if scale is None or shift is None:
        return None
    new = NewNode(
        "Conv",
        (change.data, scale.reshape(channels, 1, 1, 1), shift),
        (node.outputs[0].name,),
        {"group": channels, "kernel_shape": [1, 1]},
        name=node.name,
    )
    return Edit(remove=gone, add=(new,))


_ACTIVATIONS = (
    "BatchNormalization",
    "Clip",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Relu",
    "Sigmoid",
    "Tanh",
)


def _after_conv(graph: Graph, node: gs.Node) -> bool:
    """Whether an activation of a convolution comes before; what follows a layer itself folds."""
    maker = data_source(graph, node, *_ACTIVATIONS)
    while maker is not None:
        if source(graph, maker, 0, "Conv") is not None:
            return True
        maker = source(graph, maker, 0, *_ACTIVATIONS)
    return False


def _before_conv(graph: Graph, node: gs.Node) -> bool:
    """Whether a convolution reads a node that does not fold into all its readers."""
    readers = graph.consumers(node.outputs[0].name)
    layers = [linear_layer(graph, reader) for reader in readers]
    folds = all(layer is not None and layer.unpadded for layer in layers)
    return any(is_op(reader, "Conv") for reader in readers) and not folds
