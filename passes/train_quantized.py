"""Train a quantized network to do what the original does, with the steps of its grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from graphopt import train
from graphopt.data import Dataset
from graphopt.errors import ModelError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.quantize.collecting import Effort, collect
from graphopt.quantize.narrowing import (
    narrow_activations,
    rounded_tensors,
    widen_activations,
)
from graphopt.quantize.observed import Observed
from graphopt.quantize.opening import close_weights, gains_of, open_weights
from graphopt.quantize.upgrading import require_opset
from graphopt.train import Lesson, Plan

__all__ = ["TrainQuantized"]

_INT4_OPSET = 21
_WATCHED = 64
"""Inputs that show the range of activations which get fewer bits."""


@dataclass(frozen=True)
class TrainQuantized(Plan, Lesson, Pass):
    """Train a quantized network to do what the original does, with the steps of its grids.

    For what `quantize-static` has made: weights become floats that are rounded in every step,
    with gradients passed through; the steps of weights and activations are learned too (Esser et
    al. 2020). `weight_bits` and `activation_bits` are 8 or 4; the first and the last layer keep 8.
    Then weights and biases are stored again. ONNX Runtime computes on 8 bits: 4 bits make the
    file smaller, or are for other targets; activations of 4 bits take a byte, behind a Clip.
    What is portable stays so. No labels are needed.
    """

    name: ClassVar[str] = "train-quantized"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING})
    weight_bits: Literal[4, 8] = 8
    activation_bits: Literal[4, 8] = 8
    rate: float = 0.005
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        Plan.__post_init__(self)
        Lesson.__post_init__(self)
        for key, bits in (
            ("weight_bits", self.weight_bits),
            ("activation_bits", self.activation_bits),
        ):
            if bits not in (4, 8):
                raise RecipeError(f"{self.name}: {key} is 4 or 8, got {bits}")

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        if 4 in (self.weight_bits, self.activation_bits):
            require_opset(graph, _INT4_OPSET, "4-bit integers")
        work = graph.clone()
        opened = open_weights(work, self.weight_bits)
        if not opened:
            raise ModelError(
                f"{self.name}: no layer has a stored weight; quantize-static comes before"
            )
        narrowed: list[str] = []
        if self.activation_bits < 8:
            seen = self._seen(work, inputs, context.threads)
            narrowed = narrow_activations(work, self.activation_bits, seen)
        history = train.distill(
            work,
            context.original,
            inputs,
            self,
            self,
            resources=context.resources(),
            hooks=(train.StepSizes(gains_of(work, opened)),),
        )
        close_weights(work, opened)
        widen_activations(work, narrowed)
        graph.adopt(work)
        context.trained(history)

    def _seen(self, graph: Graph, inputs: Dataset, threads: int) -> Mapping[str, Observed]:
        """What all that is put on grids shows for some inputs."""
        names, rows = rounded_tensors(graph), inputs.take(_WATCHED)
        return collect(graph, names, rows, Effort(threads=threads, optimize="none")).seen
