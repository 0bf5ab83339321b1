"""What each layer with a stored weight gave in the original, before its activation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.ir import Graph
from graphopt.quantize.references import Reference
from graphopt.quantize.stored_layers import StoredLayer
from graphopt.rewrite.affine import AFFINE_OPS
from graphopt.rewrite.matching import is_op
from graphopt.rewrite.ramps import CLIP_OPS, bounds

__all__ = ["Target", "find_target"]

_COPIES = ("Cast", "Dropout", "Identity")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOVES = ("Flatten", "Gather", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_PRODUCTS = ("Div", "Mul")

_ANYTHING = (-math.inf, math.inf)
_RAMPS = (_ANYTHING, (0.0, math.inf))
"""Clamps that a positive factor leaves as they are."""


@dataclass(frozen=True)
class Target:
    """What a layer gave in the original: a tensor there, how it was rescaled since, its clamp."""

    tensor: str
    reference: Reference
    low: float
    high: float


def find_target(
    graph: Graph, original: Graph, references: Mapping[str, Reference], layer: StoredLayer
) -> Target | str:
    """What the layer gave in the original before its activation; or why that cannot be told.

    The original may have written the activation, which the layer's grid stands for, in other
    nodes than the graph had when it was quantized.
    """
    name = _seen_as(graph, layer.layer.output)
    reference = references.get(name, Reference(name, {}))
    if reference.tensor not in original or original.constant(reference.tensor) is not None:
        return f"the original has no tensor {reference.tensor!r}"
    tensor, ends = reference.tensor, _ANYTHING
    if name != layer.layer.output:
        found = _before_clamps(original, tensor)
        if isinstance(found, str):
            return found
        tensor, ends = found
        data = layer.layer.data
        known = references.get(data, Reference(data, {})).tensor
        if original.producer(tensor) is not None and not _is_linear(original, tensor, known):
            return f"the original does more than clamp what a layer gives for {name!r}"
    if reference.divisors and ends not in _RAMPS:
        return f"the clamp behind {name!r} is not that of the original any more"
    if original.producer(tensor) is None:
        return f"the original does not compute {tensor!r}"
    return Target(tensor, reference, *ends)


def _seen_as(graph: Graph, output: str) -> str:
    """The name under which what a layer gives is read from its grid."""
    for reader in graph.consumers(output):
        if is_op(reader, "QuantizeLinear"):
            backs = graph.consumers(reader.outputs[0].name)
            if backs and is_op(backs[0], "DequantizeLinear"):
                return str(backs[0].outputs[0].name)
    return output


def _before_clamps(original: Graph, name: str) -> tuple[str, tuple[float, float]] | str:
    """The tensor before all that only clamps, copies or rounds, and between which bounds."""
    tensor, ends = name, _ANYTHING
    while (maker := original.producer(tensor)) is not None:
        if is_op(maker, *_COPIES):
            tensor = str(maker.inputs[0].name)
        elif is_op(maker, *CLIP_OPS):
            found = bounds(original, maker)
            if found is None:
                return f"the clamp behind {name!r} is computed"
            index, *inner = found
            low, high = (min(max(end, ends[0]), ends[1]) for end in inner)
            tensor, ends = str(maker.inputs[index].name), (low, high)
        elif is_op(maker, "DequantizeLinear"):
            rounder = original.producer(maker.inputs[0].name)
            if rounder is None or not is_op(rounder, "QuantizeLinear"):
                return f"the original stores {name!r}"
            tensor = str(rounder.inputs[0].name)
        else:
            break
    return tensor, ends


def _is_linear(original: Graph, tensor: str, data: str) -> bool:
    """Whether only linear maps lie between a tensor and layers, or what the one layer reads."""
    maker = original.producer(tensor)
    if tensor == data or maker is None:
        return tensor == data
    if is_op(maker, *_LAYERS):
        return True
    mapped = _mapped(original, maker)
    return bool(mapped) and all(_is_linear(original, source, data) for source in mapped)


def _mapped(original: Graph, maker: gs.Node) -> list[str]:
    """The tensors that a linear node maps; none for all others."""
    if is_op(maker, "BatchNormalization", *_MOVES):
        return [str(maker.inputs[0].name)]
    if not is_op(maker, "Sum", *AFFINE_OPS):
        return []
    computed = [str(t.name) for t in maker.inputs if original.constant(t.name) is None]
    return [] if is_op(maker, *_PRODUCTS) and len(computed) > 1 else computed
