"""Rescale channels between layers, so that quantization loses less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphopt.errors import RecipeError
from graphopt.ir import Array, Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.quantize.equalizing import decide, read_tensors, rescale
from graphopt.runtime.observing import batch_size_for, observe

__all__ = ["Equalize"]


@dataclass(frozen=True)
class Equalize(Pass):
    """Rescale channels between layers, so that quantization loses less; outputs stay.

    A channel is divided by a factor where it is written, and multiplied where it is read: in the
    weights of Conv, ConvTranspose, Gemm, MatMul, and in the scale of LayerNormalization. Between
    them may be what is homogeneous: Relu, LeakyRelu, PRelu, pools, sums, joins, reshaping. Fold
    BatchNormalization first.

    `balance` weights makes the largest weight that writes a channel equal to the largest that
    reads it (Nagel et al. 2019), again and again until no factor changes by more than `tolerance`,
    at most `sweeps` times. It helps where weights have one scale per layer. `balance` activations
    equalizes the channels of what layers read instead, over `samples` calibration inputs (as Xiao
    et al. 2023 do for transformers); that helps where weights have a scale per channel.
    """

    name: ClassVar[str] = "equalize"
    promise: ClassVar[Promise] = Promise.EXACT
    balance: Literal["weights", "activations"] = "weights"
    samples: int = 256
    sweeps: int = 100
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.balance not in ("weights", "activations"):
            raise RecipeError(
                f"{self.name}: balance is weights or activations, got {self.balance!r}"
            )
        for key, number in (("samples", self.samples), ("sweeps", self.sweeps)):
            if number < 1:
                raise RecipeError(f"{self.name}: {key} must be at least 1, got {number}")
        if not self.tolerance > 0:
            raise RecipeError(f"{self.name}: tolerance must be above 0, got {self.tolerance}")

    def required(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION}) if self.balance == "activations" else self.needs

    def run(self, graph: Graph, context: Context) -> None:
        bounds = self._bounds(graph, context) if self.balance == "activations" else None
        found = decide(graph, bounds, sweeps=self.sweeps, tolerance=self.tolerance)
        rescaled = rescale(graph, found.scalable, found.scales)
        context.notes["segments"] = found.segments
        context.notes["sweeps"] = found.sweeps
        context.notes["rescaled"] = list(rescaled)

    def _bounds(self, graph: Graph, context: Context) -> dict[str, Array]:
        """The largest magnitude of each channel of what layers read."""
        axes = dict(read_tensors(graph))
        bounds: dict[str, Array] = {}
        dataset = context.inputs(self, "balance=activations").take(self.samples)
        size = batch_size_for(graph, axes, dataset)
        batches = observe(graph, list(axes), dataset, batch_size=size, threads=context.threads)
        for made in batches if axes else ():
            for name, value in made.items():
                rest = tuple(p for p in range(value.ndim) if p != axes[name] % value.ndim)
                peak = np.abs(value).max(axis=rest, initial=0.0)
                bounds[name] = np.maximum(bounds[name], peak) if name in bounds else peak
        return bounds
