"""Take the mean error of each quantized layer out of its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.quantize.correcting import Corrected, correct_biases, correct_by_statistics
from graphopt.quantize.sensitivity import Errors, decibels

__all__ = ["CorrectBias"]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Take the mean error of each quantized layer out of its bias (Nagel et al. 2019).

    Rounding weights and inputs shifts what a channel gives on average, and shifts add up from layer
    to layer. Over `samples` calibration inputs each layer with stored weights is compared with the
    original, before the activation, behind the sum where it is added to a shortcut, and with all
    layers before it corrected; the mean difference of each channel goes into its bias. Layers are
    found by the names of their outputs. Where the network's outputs come out further from the
    original's than before, as where errors of two branches had cancelled, no bias is changed.

    `means` batch-norm needs no inputs: what rounding does to weights is multiplied by the means
    that the original's BatchNormalization expects. That is for layers whose input comes from one,
    through Relu, Clip, sums of two or a global mean; all others are named.
    """

    name: ClassVar[str] = "correct-bias"
    promise: ClassVar[Promise] = Promise.LOSSY
    means: Literal["inputs", "batch-norm"] = "inputs"
    samples: int = 512

    def __post_init__(self) -> None:
        if self.means not in ("inputs", "batch-norm"):
            raise RecipeError(f"{self.name}: means is inputs or batch-norm, got {self.means!r}")
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples must be at least 1, got {self.samples}")

    def required(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION}) if self.means == "inputs" else self.needs

    def run(self, graph: Graph, context: Context) -> None:
        if self.means == "batch-norm":
            found = correct_by_statistics(graph, context.original)
        else:
            found = self._measured(graph, context)
        context.notes["shifts"] = dict[str, Note](found.shifts)
        context.notes["left_alone"] = dict[str, Note](found.left_alone)

    def _measured(self, graph: Graph, context: Context) -> Corrected:
        inputs = context.inputs(self, "means=inputs").take(self.samples)
        errors = Errors.of(context.original, inputs, context.threads)
        before, kept = errors.relative(graph), graph.clone()
        found = correct_biases(
            graph,
            context.original,
            inputs,
            threads=context.threads,
            progress=lambda part: context.progress("correcting biases", part),
        )
        after = errors.relative(graph)
        context.notes["output_error"] = {"before": before, "corrected": after}
        if after <= before:
            return found
        graph.adopt(kept)
        context.notes["remark"] = (
            f"biases stay, for the outputs would be {decibels(after):.1f} instead of "
            f"{decibels(before):.1f} dB from the original's"
        )
        return Corrected(left_alone=found.left_alone)
