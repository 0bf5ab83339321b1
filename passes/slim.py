"""Train a network so that its channels say which of them are not needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from graphopt import train
from graphopt.coupling import couple, prepare
from graphopt.coupling.naming import matching_families
from graphopt.errors import BudgetError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.train import Guided

__all__ = ["Slim"]

_SMALL = 1e-3
"""A scale below this part of the mean that scales had before is taken to be gone."""


@dataclass(frozen=True)
class Slim(Guided, Pass):
    """Train the network while its BatchNorm scales are pulled towards zero (Liu et al. 2017).

    `l1` times the sign of each scale is added to its gradient, so that channels which the network
    can do without fade; `remove-channels` with the importance batch-norm-scale and the allocation
    global then finds them. Scales that `restore-batch-norm` has made are counted, and pulled, in
    units of their layer's mean. Only channels that can be removed are pulled, of `families` if
    patterns of names are given. The network learns what `learn` says, labels if there are any. The
    last weights are kept: those that do best on rows held out would be the least slim.

    The pull is as strong as `l1` times the rate, summed over all steps and divided by 1 -
    momentum: the paper's 1e-4 is meant for 160 epochs at rates from 0.1 on, fewer need more. Where
    BatchNormalization is folded, `restore-batch-norm` comes first.
    """

    name: ClassVar[str] = "slim"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING})
    holdout: float = 0.0
    l1: float = 1e-4
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.l1 < math.inf:
            raise RecipeError(f"{self.name}: l1 must be at least 0, got {self.l1}")

    def required(self) -> frozenset[Need]:
        return self.needs | ({Need.LABELS} if self.learn == "labels" else set())

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        pulls = self._pulls(graph)
        before = _scales(graph, pulls)
        history = train.recover(
            graph,
            context.original,
            inputs,
            self,
            resources=context.resources(),
            hooks=[train.ScalePull(self.l1, pulls)],
        )
        after = _scales(graph, pulls)
        context.trained(history)
        scales: dict[str, Note] = {
            "count": len(after),
            "mean_before": float(before.mean()),
            "mean_after": float(after.mean()),
            "small": int(np.count_nonzero(after < _SMALL * before.mean())),
        }
        context.notes["scales"] = scales

    def _pulls(self, graph: Graph) -> Mapping[str, npt.NDArray[np.float64]]:
        """The scales to pull. Raises RecipeError where there are none."""
        prepare(graph)
        coupling = couple(graph)
        if not coupling.families:
            raise BudgetError(f"{self.name}: no channel can be removed; inspect says why")
        pulls = train.scales_of(graph, matching_families(coupling, self.families, self.name))
        if not pulls:
            raise RecipeError(
                f"{self.name}: no BatchNormalization has channels that could be removed; where it "
                f"was folded, run restore-batch-norm first"
            )
        return pulls


def _scales(graph: Graph, pulls: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """How large all scales are that are pulled, in their units."""
    constants = graph.constants()
    found = []
    for name, units in pulls.items():
        pulled = units > 0
        found.append(np.abs(constants[name].astype(np.float64))[pulled] / units[pulled])
    return np.concatenate(found)
