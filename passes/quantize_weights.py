"""Store weights as integers of 8 or 4 bits; computation stays in floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.quantize.rounding import Rounding, round_weights
from graphopt.quantize.storage import choose_weights, find_weights, store
from graphopt.quantize.upgrading import require_opset

__all__ = ["QuantizeWeights"]

_BLOCKED_OPSET = 21
"""From here on there are 4-bit integers, and scales for blocks."""
_HALVES_OPSET = 19
_CHANNEL_OPSET = 13


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store weights as integers of 8 or 4 bits; computation stays in floats.

    Weights of Conv, ConvTranspose, Gemm and MatMul, and tables that Gather takes rows of, become
    codes that DequantizeLinear reads back. With 8 `bits` there is a scale for each output channel,
    with 4 one for each `block` of inputs of each channel (0: for each channel), where a layer has
    that many inputs; tables keep 8 bits and a scale for each row. `symmetric` codes have zero in
    the middle of their range.

    `method` nearest rounds to the grid that loses least; gptq rounds column by column and makes up
    for the error in the columns still to come, by the second moments of what the layer reads, from
    `samples` calibration inputs run through the layers rounded before (Frantar et al. 2022).

    `weights` are patterns of names, such as ["encoder.*", "!*.head.*"]; with "!" they stay float.
    A weight that several layers read is stored once. A weight that would not get smaller stays.
    Weights in float16 are read back as such.

    ONNX Runtime computes MatMul and Gemm with such weights as MatMulNBits, mostly faster than in
    floats; it unpacks those of Conv on every run, which costs time: only the file gets smaller.
    """

    name: ClassVar[str] = "quantize-weights"
    promise: ClassVar[Promise] = Promise.LOSSY
    bits: Literal[4, 8] = 8
    block: int = 32
    symmetric: bool = True
    method: Literal["nearest", "gptq"] = "nearest"
    damping: float = 0.01
    samples: int = 256
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise RecipeError(f"{self.name}: bits is 4 or 8, got {self.bits}")
        if self.block and (self.block < 16 or self.block & (self.block - 1)):
            raise RecipeError(
                f"{self.name}: block must be 0 or a power of two from 16 on, got {self.block}"
            )
        if self.method not in ("nearest", "gptq"):
            raise RecipeError(f"{self.name}: method is nearest or gptq, got {self.method!r}")
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples must be at least 1, got {self.samples}")
        if not self.damping > 0:
            raise RecipeError(f"{self.name}: damping must be above 0, got {self.damping}")
        if self.bits == 8 and self.block not in (0, QuantizeWeights.block):
            raise RecipeError(
                f"{self.name}: block is for bits=4, got {self.block} with bits=8, where there is a "
                "scale for each output channel"
            )
        if self.method == "nearest":
            self._check_nearest()

    def _check_nearest(self) -> None:
        for key, given, default in (
            ("damping", self.damping, QuantizeWeights.damping),
            ("samples", self.samples, QuantizeWeights.samples),
        ):
            if given != default:
                raise RecipeError(
                    f"{self.name}: {key} is for method=gptq, got {given} with method=nearest, "
                    "which looks at no inputs"
                )

    def required(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION}) if self.method == "gptq" else self.needs

    def run(self, graph: Graph, context: Context) -> None:
        dataset = self._dataset(context)
        weights = choose_weights(graph, self.weights, self.name)
        if not weights:
            context.left_alone(find_weights(graph)[1])
            return
        if self.bits == 4 or any(weight.gathered for weight in weights):
            require_opset(graph, _BLOCKED_OPSET, "4-bit weights or a scale for each block")
        elif any(weight.array(graph).dtype == np.float16 for weight in weights):
            require_opset(graph, _HALVES_OPSET, "a scale in float16")
        else:
            require_opset(graph, _CHANNEL_OPSET, "a scale for each channel")
        weights = choose_weights(graph, self.weights, self.name)
        settings = Rounding(
            self.bits, self.block, self.symmetric, self.damping, context.seed, context.threads
        )
        rounded = round_weights(
            graph, weights, settings, dataset, lambda part: context.progress("rounding", part)
        )
        for weight in weights:
            if weight.name in rounded.made:
                store(graph, weight, *rounded.made[weight.name])
        context.notes["errors"] = dict[str, Note](rounded.errors)
        context.notes["nearest"] = list[Note](rounded.nearest)
        left = {**find_weights(graph)[1], **rounded.left_alone}
        context.notes["left_alone"] = dict[str, Note](left)
        if not rounded.made:
            context.left_alone(left)

    def _dataset(self, context: Context) -> Dataset | None:
        if self.method == "nearest":
            return None
        return context.inputs(self, "method=gptq").take(self.samples)
