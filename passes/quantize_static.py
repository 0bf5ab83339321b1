"""Store weights and activations as 8-bit integers, on grids that calibration inputs fix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.quantize.calibrators import CALIBRATORS
from graphopt.quantize.collecting import Effort
from graphopt.quantize.sensitivity import capped, decibels
from graphopt.quantize.static import BATCH_NORM, BEST, Findings, Settings, quantize

__all__ = ["QuantizeStatic"]


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Store weights and activations as 8-bit integers, on grids that calibration inputs fix.

    What ONNX Runtime's CPU provider executes on integers gets QuantizeLinear and DequantizeLinear
    around it: weights signed and symmetric with a scale for each output channel, activations
    unsigned, biases with 32 bits. Relu and Clip behind a layer go: the ends of the grid clamp.
    Ranges of activations come from at most `samples` inputs by `calibrator`: minmax, average,
    percentile, entropy, mse, or the best of three by the error of the outputs. Calibration ends
    early after `seconds`, or once doubling the inputs moved no range by more than the fraction
    `settled`. Batches may differ in shape. As many run at a time as there are threads, which
    changes no range. What they show is kept in the work directory, where an interrupted
    calibration goes on, and another calibrator needs no second look. `exclude` are patterns of
    nodes, tensors or operators that stay in floating point, joined by |; what they name is
    absorbed by no layer either. A pattern that names none is an error.

    Layers that ruin the outputs go back to floats until these have `least_db` decibels of signal
    over error on calibration inputs. What each layer alone on integers does to the outputs is
    in the report then, and with `layer_errors` in any case. If `pays`, what is not faster by
    measurement is taken out again, be it one layer or all of them. If `portable`, weights get
    coarser steps where sums of two products could leave 16 bits, so that processors with and
    without VNNI instructions give the same results.

    `calibrator` batch-norm needs no inputs: values lie within six deviations of the mean that
    BatchNormalization states, in the graph or in the original before it was folded, and what
    follows clamps and adds them (Nagel et al. 2019). Layers of which it says nothing stay in
    floats; those that read the model's inputs do unless `input_range`, as [-2.2, 2.7], says where
    these lie. With inputs at hand `least_db` is looked at on them, without it is not.

    A model that has QuantizeLinear and DequantizeLinear already is left as it is. With
    `requantize` these go first, and constants become floats: where a grid begins at 0 a Relu that
    it may stand for comes back, or a Clip if it ends at 6. Floats it stays if integers do not pay.
    """

    name: ClassVar[str] = "quantize-static"
    promise: ClassVar[Promise] = Promise.LOSSY
    calibrator: str = BEST
    samples: int = 512
    seconds: float | None = None
    settled: float | None = 0.02
    exclude: str = ""
    least_db: float | None = 15.0
    pays: bool = True
    portable: bool = False
    input_range: tuple[float, ...] = ()
    requantize: bool = False
    layer_errors: bool = False

    def __post_init__(self) -> None:
        if self.calibrator not in (known := sorted((BATCH_NORM, BEST, *CALIBRATORS))):
            raise RecipeError(
                f"{self.name}: calibrator must be one of {', '.join(known)}, "
                f"got {self.calibrator!r}"
            )
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples must be at least 1, got {self.samples}")
        for name, value in (("seconds", self.seconds), ("settled", self.settled)):
            if value is not None and not value > 0:
                raise RecipeError(f"{self.name}: {name} must be above 0, got {value}")
        if self.calibrator == BATCH_NORM and self.seconds is not None:
            raise RecipeError(
                f"{self.name}: seconds is for calibrators that look at inputs, got {self.seconds} "
                f"with calibrator={BATCH_NORM}"
            )
        self._check_range()

    def _check_range(self) -> None:
        ends = self.input_range
        if not ends:
            return
        if len(ends) != 2 or not ends[0] < ends[1] or not all(map(math.isfinite, ends)):
            raise RecipeError(
                f"{self.name}: input_range must be two rising numbers, as [-1, 1], got {[*ends]}"
            )
        if self.calibrator != BATCH_NORM:
            raise RecipeError(
                f"{self.name}: input_range is for calibrator={BATCH_NORM}; inputs show their range"
            )

    def required(self) -> frozenset[Need]:
        looks = self.calibrator != BATCH_NORM or self.layer_errors
        return frozenset({Need.CALIBRATION}) if looks else self.needs

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.calibration
        if self.required():
            inputs = context.inputs(self)
        settings = Settings(
            self.calibrator,
            Effort(self.seconds, self.settled, context.threads, checkpoints=context.checkpoints),
            tuple(pattern.strip() for pattern in self.exclude.split("|") if pattern.strip()),
            self.least_db,
            self.pays,
            self.portable,
            context.threads,
            self.input_range,
            self.requantize,
            self.layer_errors,
        )
        rows = None if inputs is None else inputs.take(self.samples)
        found = quantize(graph, context.original, rows, settings, context.progress)
        _note(found, context.notes)


def _note(found: Findings, notes: dict[str, Note]) -> None:
    """What the report is told."""
    if found.already:
        notes["remark"] = (
            "left as it is, for the model is quantized already; requantize=true makes it floats "
            "first"
        )
    elif found.why is not None:
        notes["remark"] = f"all stays in floats: {found.why}"
    elif not found.judged:
        notes["remark"] = "outputs are made of no floats that could be compared: no error is known"
    elif found.freed:
        notes["remark"] = f"stay in floats, for integers ruin the outputs: {_few(_rated(found))}"
    elif found.alone:
        notes["remark"] = f"layers that lose the outputs most: {_few(_rated(found))}"
    elif found.unknown:
        notes["remark"] = f"stay in floats, for no statistics tell ranges: {_few(found.unknown)}"
    if found.collected is not None:
        notes["inputs"] = found.collected.inputs
        notes["stopped"] = found.collected.stopped
        notes["resumed_inputs"] = found.collected.resumed
    notes["undone"] = found.undone
    notes["calibrator"] = found.calibrator
    notes["decibels"] = found.decibels
    notes["latency_ratio"] = found.ratio
    notes["layer_errors"] = [*_alone(found)]
    notes["range_unknown"] = [*found.unknown]
    notes["freed"] = [*found.freed]
    notes["saturating_channels"] = dict[str, Note](found.saturating)
    notes["not_worth_it"] = [*found.unpaid]
    if found.plan is not None:
        notes["plan"] = [*str(found.plan).splitlines()]


def _alone(found: Findings) -> Iterator[Note]:
    """What each layer alone does to the outputs, the worst first."""
    errors = capped(found.alone)
    total = max(sum(errors.values()), 1e-30)
    for name, error in sorted(found.alone.items(), key=lambda item: -item[1]):
        yield {
            "layer": name,
            "decibels": decibels(error),
            "share": errors[name] / total,
            "in_floats": name in found.freed,
        }


def _rated(found: Findings) -> list[str]:
    """The layers that went back to floats, or all if none did, the worst first."""
    names = sorted(found.freed or found.alone, key=lambda name: -found.alone.get(name, 0.0))
    return [f"{name} ({decibels(found.alone[name]):.1f} dB alone)" for name in names]


def _few(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
