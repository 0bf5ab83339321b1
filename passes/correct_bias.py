"""Take the mean error of each quantized layer out of its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.quantize.correcting import correct_biases

__all__ = ["CorrectBias"]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Take the mean error of each quantized layer out of its bias (Nagel et al. 2019).

    Rounding weights and inputs shifts what a channel gives on average, and shifts add up from layer
    to layer. Over `samples` calibration inputs each layer with stored weights is compared with the
    original, before the activation and with all layers before it corrected; the mean difference
    of each channel goes into its bias. Layers are found by the names of their outputs.
    """

    name: ClassVar[str] = "correct-bias"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    samples: int = 512

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples must be at least 1, got {self.samples}")

    def run(self, graph: Graph, context: Context) -> None:
        if context.calibration is None:
            raise RecipeError(f"{self.name}: needs inputs to measure on; give --data, unlabeled")
        found = correct_biases(
            graph,
            context.original,
            context.calibration.take(self.samples),
            threads=context.threads,
            progress=lambda part: context.progress("correcting biases", part),
        )
        context.notes["shifts"] = dict[str, Note](found.shifts)
        context.notes["left_alone"] = dict[str, Note](found.left_alone)
