"""Remove whole channels everywhere they reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.coupling import Coupling, couple, explain, mask, prepare, remove
from graphopt.coupling.importance import IMPORTANCES
from graphopt.coupling.selection import select
from graphopt.errors import BudgetError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Note, Pass, Promise

__all__ = ["RemoveChannels"]

_ALLOCATIONS = ("uniform",)


@dataclass(frozen=True)
class RemoveChannels(Pass):
    """Remove whole channels everywhere they reach.

    In every family of coupled channels the fraction `ratio` goes, those with the least
    `importance` (l1 or l2 norm of the weights they run through). `allocation` is uniform: every
    family loses the same fraction. What stays is rounded up to a multiple of `align`, and never
    less than one channel per family.
    """

    name: ClassVar[str] = "remove-channels"
    promise: ClassVar[Promise] = Promise.CUT
    ratio: float = 0.5
    align: int = 1
    importance: str = "l2"
    allocation: str = "uniform"

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise RecipeError(f"{self.name}: ratio must be between 0 and 1, got {self.ratio}")
        if self.align < 1:
            raise RecipeError(f"{self.name}: align must be at least 1, got {self.align}")
        _check("importance", self.importance, tuple(IMPORTANCES))
        _check("allocation", self.allocation, _ALLOCATIONS)

    def run(self, graph: Graph, context: Context) -> None:
        prepare(graph)
        coupling = couple(graph)
        if not coupling.families:
            raise BudgetError(f"{self.name}: {_why_nothing(coupling)}")
        plan = {}
        for family in coupling.families:
            scores = IMPORTANCES[self.importance](family, graph, {})
            kept = select(family, scores, self.ratio, align=self.align)
            if len(kept) < family.size:
                plan[family.name] = kept
        record = remove(graph, coupling, plan)
        families: dict[str, Note] = {name: kept.tolist() for name, kept in plan.items()}
        context.notes["families"] = families
        context.notes["channels"] = {
            name: {str(axis): _note(kept) for axis, kept in axes.items()}
            for name, axes in record.items()
        }
        blurred = [family.blur for family in coupling.families if not family.exact]
        context.notes["reads_kept_channels_only"] = list(dict.fromkeys(blurred))

    def reference(self, before: Graph, context: Context) -> Graph:
        graph = before.clone()
        prepare(graph)
        plan = context.notes["families"]
        assert isinstance(plan, dict), "run has noted which channels stay"
        return mask(couple(graph), {name: np.asarray(kept) for name, kept in plan.items()})


def _check(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(
            f"remove-channels: {option} must be one of {', '.join(known)}, got {value!r}"
        )


def _note(kept: list[int] | list[list[int]]) -> Note:
    return [entry if isinstance(entry, int) else list(entry) for entry in kept]


def _why_nothing(coupling: Coupling) -> str:
    if not coupling.frozen:
        return "there are no channels to remove"
    largest = max(coupling.frozen, key=lambda family: coupling.held[family.name].parameters)
    return f"no channel can go; {largest.name!r}, the largest, is held by {explain(largest)}"
