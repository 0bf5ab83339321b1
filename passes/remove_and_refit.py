"""Remove the channels whose loss can best be made up for, and make up for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.coupling import Coupling, Family, couple, prepare, remove, what_holds, why_nothing
from graphopt.coupling.allocation import Candidates, Fitted
from graphopt.coupling.importance import IMPORTANCES
from graphopt.coupling.work import macs_of
from graphopt.data import Dataset
from graphopt.data.mirroring import mirrored
from graphopt.errors import BudgetError, DataError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.refit import (
    Curve,
    Fitting,
    Ordering,
    choices_of,
    curves,
    fit_budget,
    ordering_of,
    refit,
    surgeon,
    traces_of,
)

__all__ = ["RemoveAndRefit"]

SURGEON = "surgeon"
"""The name of the criterion that is not one of `remove-channels`."""

_JUDGES = 192
"""Inputs on which the outputs' error is measured, at most a quarter of all."""


@dataclass(frozen=True)
class RemoveAndRefit(Fitting, Pass):
    """Remove the channels whose loss can best be made up for, and make up for it.

    Until at most the fraction `macs` of the multiply-accumulates is left. Within a family the
    channels go one by one, each time the one after which the layers that read it, solved anew,
    are least off (block-wise optimal brain surgeon). How many go of each family is what costs the
    outputs least: a few widths of every family, cut alone and refitted, are measured on
    calibration inputs. Then the whole network is refitted from the front as by `refit`, whose
    options `samples`, `rounds`, `damping` and `joint` are.

    Another `importance` than surgeon is a criterion of `remove-channels`, by whose scores the
    channels go instead; those that judge what a layer reads look at it in the network as it is cut
    by then. What stays of a family is rounded up to a multiple of `align`. With `mirror` every
    image serves a second time, mirrored left to right: for photographs, not for writing.
    """

    name: ClassVar[str] = "remove-and-refit"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    macs: float = 0.5
    align: int = 1
    importance: str = SURGEON
    mirror: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.macs < 1.0:
            raise RecipeError(f"{self.name}: macs must be between 0 and 1, got {self.macs}")
        if self.align < 1:
            raise RecipeError(f"{self.name}: align must be at least 1, got {self.align}")
        known = (SURGEON, *IMPORTANCES)
        if self.importance not in known:
            raise RecipeError(
                f"{self.name}: importance must be one of {', '.join(known)}, got "
                f"{self.importance!r}"
            )

    def run(self, graph: Graph, context: Context) -> None:
        data = self._inputs(context)
        prepare(graph)
        coupling = couple(graph)
        found, fitted, ordering = self._decided(coupling, data, context)
        later, now = choices_of(coupling, found, fitted.plan, ordering)
        original, traces = graph.clone(), traces_of(coupling, now)
        remove(graph, coupling, now)
        fit = refit(
            graph,
            original,
            traces,
            data,
            self.settings(seed=context.seed, threads=context.threads),
            later,
            lambda part: context.progress("refitting", part),
        )
        families: dict[str, Note] = {
            **{name: [int(channel) for channel in kept] for name, kept in now.items()},
            **{name: list(kept) for name, kept in fit.picked.items()},
        }
        context.notes["families"] = families
        context.notes["left"] = fitted.left
        context.notes["refitted"] = {
            name: {"before": first, "after": last} for name, (first, last) in fit.errors.items()
        }
        context.notes["joint"] = {
            name: {"before": before, "after": after}
            for name, (before, after) in fit.together.items()
        }
        context.left_alone(fit.left_alone)
        if not fitted.met:
            context.notes["unmet"] = [self._unmet(coupling, found, fitted)]

    def _unmet(self, coupling: Coupling, found: Mapping[str, Curve], fitted: Fitted) -> str:
        text = f"macs {self.macs:g}: the least that a cut can leave is {fitted.left:.3f}"
        alone = [family.name for family in coupling.families if family.name not in found]
        if alone:
            text += f"; no layer that reads {', '.join(map(repr, alone))} can be solved anew"
        return "; ".join(filter(None, (text, what_holds(coupling))))

    def _decided(
        self, coupling: Coupling, data: Dataset, context: Context
    ) -> tuple[Mapping[str, Curve], Fitted, Ordering]:
        """What each family costs, and the widths that meet the budget."""
        if not coupling.families:
            raise BudgetError(f"{self.name}: {why_nothing(coupling)}")
        ordering = self._ordering(coupling, data, context)
        found, needed = curves(
            coupling,
            coupling.families,
            data,
            data.take(max(1, min(_JUDGES, len(data) // 4))),
            self.settings(seed=context.seed, threads=context.threads),
            ordering,
            lambda part: context.progress("judging channels", part),
        )
        fitted = self._fitted(coupling, found)
        if needed > len(data) and not fitted.met:
            raise DataError(
                f"{self.name}: {len(data)} inputs are too few to judge all families; give at "
                f"least {needed}"
            )
        if not found:
            raise BudgetError(f"{self.name}: no layer that sums over a family can be solved anew")
        return found, fitted, ordering

    def _inputs(self, context: Context) -> Dataset:
        data = context.inputs(self).take(self.samples)
        return mirrored(data) if self.mirror else data

    def _ordering(self, coupling: Coupling, data: Dataset, context: Context) -> Ordering:
        if self.importance == SURGEON:
            return surgeon
        return ordering_of(
            self.importance,
            coupling,
            data,
            seed=context.seed,
            threads=context.threads,
            progress=lambda part: context.progress("measuring channels", part),
        )

    def _fitted(self, coupling: Coupling, found: Mapping[str, Curve]) -> Fitted:
        families = [family for family in coupling.families if family.name in found]
        scores = {family.name: _scores(family, found[family.name]) for family in families}
        errors = {name: curve.errors for name, curve in found.items()}
        return fit_budget(
            Candidates(families, scores, self.align), errors, macs_of(coupling).left, self.macs
        )


def _scores(family: Family, curve: Curve) -> np.ndarray:
    """The later a channel goes, the higher."""
    scores = np.full(family.size, float(family.size))
    scores[list(curve.order)] = np.arange(len(curve.order))
    return scores
