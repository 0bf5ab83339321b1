"""Turn products of whole numbers with zero into constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.matching import operands

__all__ = ["FoldZeros"]

_MOST_ELEMENTS = 1024
"""Larger zeros would make the file larger than the node that goes."""


@dataclass(frozen=True)
class FoldZeros(Pass):
    """Turn products of whole numbers with 0 into constants.

    Exporters keep an unused input alive that way. Floats stay, for 0 * inf is not 0.
    """

    name: ClassVar[str] = "fold-zeros"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, {"Mul": (zeros,)}))


def zeros(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace x * 0 by zeros."""
    pair, output = operands(graph, node), node.outputs[0].name
    if pair is None or pair.constant.dtype.kind not in "iu" or np.any(pair.constant):
        return None
    shape = graph.shape(output)
    sizes = [dim for dim in shape or () if isinstance(dim, int)]
    if shape is None or len(sizes) < len(shape) or math.prod(sizes) > _MOST_ELEMENTS:
        return Refusal("zeros", node.name, "its size is large or not known")
    if graph.is_output(output):
        return Refusal("zeros", node.name, f"{output!r} is an output")
    return Edit(remove=(node,), constants={output: np.zeros(sizes, pair.constant.dtype)})
