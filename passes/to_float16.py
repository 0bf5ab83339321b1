"""Store weights, or compute whole networks, in 16-bit floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Note, Pass, Promise
from graphopt.quantize.halves import LARGEST, LEAST, compute_in_halves, float_tensors, store_halves
from graphopt.quantize.upgrading import require_opset
from graphopt.runtime.observing import batch_size_for, observe

__all__ = ["ToFloat16"]

_BATCH = 16
_BFLOAT16_OPSET = 13
_MARGIN = 4.0
"""Inputs that were not seen may give values so many times larger."""


@dataclass(frozen=True)
class ToFloat16(Pass):
    """Store weights, or compute whole networks, in 16-bit floats; inputs and outputs stay.

    By default only the file gets smaller: weights are cast back when ONNX Runtime loads them, and
    nothing gets slower. With `compute` what is safe also runs in 16 bits, for targets that are
    fast at it; ONNX Runtime's CPU provider is not. Then values are checked on `samples`
    calibration inputs, where there are any: nodes that make or read a value which, four times
    larger, the `type` could not hold stay in single precision and are named, and so do those of
    tensors whose largest value is so small that it would lose digits. So do sums over many
    numbers, powers, exponentials, what is next to integers or inside loops, and operators that the
    model's operator set does not define for the type (bfloat16 needs 22 for convolutions).
    Weights too large or too small for the type stay, and so do the scales of quantized tensors.
    """

    name: ClassVar[str] = "to-float16"
    promise: ClassVar[Promise] = Promise.LOSSY
    type: Literal["float16", "bfloat16"] = "float16"
    compute: bool = False
    samples: int = 64

    def __post_init__(self) -> None:
        if self.type not in LARGEST:
            raise RecipeError(f"{self.name}: type is float16 or bfloat16, got {self.type!r}")
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples must be at least 1, got {self.samples}")
        if not self.compute and self.samples != ToFloat16.samples:
            raise RecipeError(
                f"{self.name}: samples is for compute=true, got {self.samples}; storing weights "
                "looks at no inputs"
            )

    def run(self, graph: Graph, context: Context) -> None:
        if self.type == "bfloat16":
            require_opset(graph, _BFLOAT16_OPSET, "bfloat16")
        if self.compute:
            peaks = self._peaks(graph, context)
            large = {n: x for n, x in peaks.items() if x * _MARGIN > LARGEST[self.type]}
            small = {n: x for n, x in peaks.items() if 0 < x < LEAST[self.type]}
            nodes, left = compute_in_halves(graph, self.type, {**large, **small})
            context.notes["computed"] = list[Note](nodes)
            context.notes["too_large"] = dict[str, Note](large)
            context.notes["too_small"] = dict[str, Note](small)
            context.notes["left_alone"] = dict[str, Note](left)
        stored, kept = store_halves(graph, self.type)
        context.notes["stored"] = list[Note](stored)
        context.notes["kept_single"] = dict[str, Note](kept)
        if not stored and not context.notes.get("computed"):
            context.left_alone(kept)

    def _peaks(self, graph: Graph, context: Context) -> dict[str, float]:
        """The largest magnitude of each tensor on the inputs, if there are any.

        Infinite values, as those of masks, are infinite in either type.
        """
        peaks: dict[str, float] = {}
        names = float_tensors(graph)
        if context.calibration is None or not names:
            return peaks
        dataset = context.inputs(self).take(self.samples)
        size = min(_BATCH, batch_size_for(graph, names, dataset))
        for made in observe(
            graph, names, dataset, batch_size=size, threads=context.threads, check=False
        ):
            for name, value in made.items():
                peak = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
                peaks[name] = max(peaks.get(name, 0.0), peak)
        return peaks
