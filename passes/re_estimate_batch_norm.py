"""Measure again what BatchNormalization normalises by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import DataError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.refit import re_estimate

__all__ = ["ReEstimateBatchNorm"]

_LEAST = 16
"""Fewer inputs say more of themselves than of the data."""


@dataclass(frozen=True)
class ReEstimateBatchNorm(Pass):
    """Measure again what every BatchNormalization normalises by.

    After a change of the layers before it, its mean and variance no longer fit. They are replaced
    by those of its input on `samples` calibration inputs, from the front of the network to its
    back, each behind those already replaced. Where none is left (folded into the layers before),
    nothing changes.
    """

    name: ClassVar[str] = "re-estimate-batch-norm"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    samples: int = 1024

    def __post_init__(self) -> None:
        if self.samples < _LEAST:
            raise RecipeError(f"{self.name}: samples must be at least {_LEAST}, got {self.samples}")

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        data = inputs.take(self.samples)
        if len(data) < _LEAST:
            raise DataError(f"{self.name}: {len(data)} inputs are too few; give at least {_LEAST}")
        done, skipped = re_estimate(
            graph,
            data,
            threads=context.threads,
            progress=lambda part: context.progress("measuring statistics", part),
        )
        context.notes["re_estimated"] = len(done)
        context.notes["left_alone"] = list(skipped)
