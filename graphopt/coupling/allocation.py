"""Decide how wide each family stays: an allocation turns one strength into widths of all of them.

A strength is a number from 0 (nothing goes) to 1 (all goes that may go); the mildest one that
meets a budget is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from graphopt.coupling.families import Family
from graphopt.coupling.removal import Plan
from graphopt.coupling.selection import aligned, best
from graphopt.coupling.statistics import Scores

__all__ = ["Allocation", "Candidates", "Fitted", "by_error", "by_score", "fit", "uniform"]

Channels = npt.NDArray[np.int64]

_STEPS = 24
"""Bisections: enough to tell single channels of any network apart."""

_TRIES = 64
"""Families that may stay wider, where a plan leaves less than it might."""

_SLOPE = 0.05
"""How much more a family that loses all is taken to cost than one that loses nothing, at least."""


@dataclass(frozen=True)
class Candidates:
    """Families that may be cut, their scores, and the limits of their widths.

    Never less than the fraction `floor` of a family stays.
    """

    families: Sequence[Family]
    scores: Mapping[str, Scores]
    align: int = 1
    floor: float = 0.0
    _known: dict[tuple[str, int], Channels] = field(default_factory=dict, repr=False)

    def plan(self, widths: Mapping[str, float]) -> dict[str, Channels]:
        """The best channels for these widths; families that stay whole are left out."""
        found = {}
        for family in self.families:
            least = math.ceil(self.floor * family.size)
            wanted = aligned(family, max(round(widths[family.name]), least), self.align)
            key = family.name, wanted
            if key not in self._known:
                self._known[key] = best(family, self.scores[family.name], wanted)
            if len(self._known[key]) < family.size:
                found[family.name] = self._known[key]
        return found

    def left(self, plan: Plan) -> float:
        """The fraction of all channels that stays."""
        total = sum(family.size for family in self.families)
        kept = sum(len(plan.get(family.name, range(family.size))) for family in self.families)
        return kept / total

    def loss(self, plan: Plan) -> float:
        """The sum of the scores that go."""
        return sum(
            float(self.scores[name].sum() - self.scores[name][np.asarray(kept)].sum())
            for name, kept in plan.items()
        )


Allocation = Callable[[float], Mapping[str, float]]
"""From a strength to a width for each family."""


def uniform(candidates: Candidates) -> Allocation:
    """Every family loses the same fraction."""
    return lambda strength: {
        family.name: family.size * (1 - strength) for family in candidates.families
    }


def by_score(candidates: Candidates) -> Allocation:
    """One threshold for all: the fraction `strength` of all channels is below it."""
    ordered = np.sort(np.concatenate([candidates.scores[f.name] for f in candidates.families]))

    def widths(strength: float) -> Mapping[str, float]:
        place = min(round(strength * len(ordered)), len(ordered))
        threshold = ordered[place] if place < len(ordered) else np.inf
        return {
            family.name: float(np.count_nonzero(candidates.scores[family.name] >= threshold))
            for family in candidates.families
        }

    return widths


def by_error(
    candidates: Candidates, curves: Mapping[str, Sequence[tuple[float, float]]]
) -> Allocation:
    """Every family is cut until it costs the same error.

    `curves` gives, for each family, pairs of the fraction that goes and the error it costs alone.
    """
    errors = np.array([error for curve in curves.values() for _, error in curve])
    positive = errors[errors > 0]
    least = max(float(positive.min()) if len(positive) else 1.0, 1e-12)
    most = 2 * max(float(errors.max(initial=0.0)), least)

    def widths(strength: float) -> Mapping[str, float]:
        allowed = (
            most if strength >= 1 else least * (most / least) ** strength * min(1, 9 * strength)
        )
        found = {}
        for family in candidates.families:
            ratios, costs = np.array([(0.0, 0.0), *curves[family.name]]).T
            # Strictly increasing, so that a width is never jumped over.
            costs = np.maximum.accumulate(costs) * (1 + _SLOPE * ratios) + _SLOPE * least * ratios
            ratio = float(np.interp(allowed, costs, ratios))
            found[family.name] = family.size * (1 - ratio)
        return found

    return widths


@dataclass(frozen=True)
class Fitted:
    """The plan that was found, what is left of the budgeted quantity, and whether that meets it."""

    plan: Mapping[str, Channels]
    left: float
    met: bool


def fit(
    candidates: Candidates,
    allocation: Allocation,
    left: Callable[[Plan], float],
    target: float,
) -> Fitted:
    """The mildest plan of an allocation that leaves at most `target`; else the strongest."""
    low, high = 0.0, 1.0
    plan = candidates.plan(allocation(high))
    reached = left(plan)
    if reached > target:
        return Fitted(plan, reached, met=False)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried = candidates.plan(allocation(middle))
        found = left(tried)
        if found <= target:
            high, plan, reached = middle, tried, found
        else:
            low = middle
    return _filled(candidates, plan, candidates.plan(allocation(low)), left, target)


def _filled(
    candidates: Candidates,
    plan: Mapping[str, Channels],
    wider: Mapping[str, Channels],
    left: Callable[[Plan], float],
    target: float,
) -> Fitted:
    """Leave families as wide as the next milder plan has them, where that fits.

    Those that lose most come first. With coarse widths families take a step at one strength, and
    all of them together may be too many.
    """
    regained = {
        name: candidates.loss({name: kept})
        - candidates.loss({key: wider[key] for key in (name,) if key in wider})
        for name, kept in plan.items()
        if len(kept) != len(wider.get(name, ()))
    }
    found, reached = dict(plan), left(plan)
    for name in sorted(regained, key=lambda name: regained[name], reverse=True)[:_TRIES]:
        tried = {key: kept for key, kept in found.items() if key != name}
        if name in wider:
            tried[name] = wider[name]
        share = left(tried)
        if share <= target:
            found, reached = tried, share
    return Fitted(found, reached, met=True)
