"""Take the mean error of each quantized layer out of its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.quantize.correcting import Corrected, correct_biases, correct_by_statistics

__all__ = ["CorrectBias"]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Take the mean error of each quantized layer out of its bias (Nagel et al. 2019).

    Rounding weights and inputs shifts what a channel gives on average, and shifts add up from layer
    to layer. Over `samples` calibration inputs each layer with stored weights is compared with the
    original, before the activation and with all layers before it corrected; the mean difference
    of each channel goes into its bias. Layers are found by the names of their outputs.

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
        inputs = context.inputs(self, "means=inputs")
        return correct_biases(
            graph,
            context.original,
            inputs.take(self.samples),
            threads=context.threads,
            progress=lambda part: context.progress("correcting biases", part),
        )
