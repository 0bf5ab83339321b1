"""Store weights and activations as 8-bit integers, on grids that calibration inputs fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.quantize.calibrators import CALIBRATORS
from graphopt.quantize.collecting import Effort, collect
from graphopt.quantize.insertion import insert, upgrade
from graphopt.quantize.placement import is_quantized, place
from graphopt.quantize.plan import make_plan, watched

__all__ = ["QuantizeStatic"]


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Store weights and activations as 8-bit integers, on grids that calibration inputs fix.

    What ONNX Runtime's CPU provider executes on integers gets QuantizeLinear and DequantizeLinear
    around it: weights signed and symmetric with a scale for each output channel, activations
    unsigned, biases with 32 bits. Relu and Clip behind a layer go: the ends of the grid clamp.
    Ranges of activations come from at most `samples` inputs by `calibrator`: minmax, average,
    percentile, entropy or mse; calibration ends early after `seconds`, or once doubling the
    inputs moved no range by more than the fraction `settled`. `exclude` are patterns of nodes,
    tensors or operators that stay in floating point, joined by |.
    """

    name: ClassVar[str] = "quantize-static"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    calibrator: str = "mse"
    samples: int = 512
    seconds: float | None = None
    settled: float | None = 0.02
    exclude: str = ""

    def __post_init__(self) -> None:
        if self.calibrator not in CALIBRATORS:
            raise RecipeError(
                f"{self.name}: calibrator must be one of {', '.join(sorted(CALIBRATORS))}, "
                f"got {self.calibrator!r}"
            )
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples must be at least 1, got {self.samples}")

    def run(self, graph: Graph, context: Context) -> None:
        if context.calibration is None:
            raise RecipeError(f"{self.name}: needs inputs to calibrate on; give --data, unlabeled")
        if is_quantized(graph):
            context.notes["left alone"] = "the model is quantized already"
            return
        upgrade(graph)
        placement = place(graph, [p for p in self.exclude.split("|") if p])
        names = [name for group in watched(placement).values() for name in group]
        found = collect(
            graph,
            names,
            context.calibration.take(self.samples),
            Effort(self.seconds, self.settled),
            threads=context.threads,
            progress=lambda part: context.progress("calibrating", part),
        )
        plan = make_plan(graph, placement, found.seen, CALIBRATORS[self.calibrator])
        insert(graph, plan)
        context.notes["inputs"] = found.inputs
        context.notes["plan"] = [*str(plan).splitlines()]
