"""Multiply matrices on 8-bit integers, with ranges taken from each input as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Note, Pass, Promise
from graphopt.quantize.dynamic import multiply_integers, why_not
from graphopt.quantize.grid import INT8
from graphopt.quantize.storage import choose_weights, find_weights
from graphopt.quantize.upgrading import require_opset

__all__ = ["QuantizeDynamic"]

_OPSET = 11
"""From here on there is DynamicQuantizeLinear."""


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Multiply matrices on 8-bit integers, with ranges taken from each input as it comes.

    MatMul and Gemm with constant weights; needs no calibration, and suits networks whose ranges
    differ from input to input, such as transformers. Weights have a scale for each output, the
    input one for all of a batch, so that results depend on what else is in the batch. ONNX Runtime
    makes one node of the pieces; layers that read one tensor share its integers.

    Convolutions stay in floats: with ranges taken as it runs ONNX Runtime is several times slower
    at them (`quantize-static` is the way). Tables that Gather reads stay too; `quantize-weights`
    after this stores them in 8 bits. With 7 `bits` sums of two products cannot saturate on CPUs
    without VNNI. `weights` are patterns of names; with "!" they stay float.
    """

    name: ClassVar[str] = "quantize-dynamic"
    promise: ClassVar[Promise] = Promise.LOSSY
    bits: Literal[7, 8] = 8
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in (7, 8):
            raise RecipeError(f"{self.name}: bits is 7 or 8, got {self.bits}")

    def run(self, graph: Graph, context: Context) -> None:
        chosen, left = {}, dict(find_weights(graph)[1])
        for weight in choose_weights(graph, self.weights, self.name):
            reason = why_not(graph, weight)
            if reason is None:
                chosen[weight.name] = weight
            else:
                left[weight.name] = reason
        if chosen:
            require_opset(graph, _OPSET, "DynamicQuantizeLinear")
            again = {weight.name: weight for weight in find_weights(graph)[0]}
            multiply_integers(
                graph, {name: again[name] for name in chosen}, INT8.narrowed(self.bits)
            )
        context.notes["quantized"] = list[Note](chosen)
        context.notes["left_alone"] = dict[str, Note](left)
        if not chosen:
            context.left_alone(left)
