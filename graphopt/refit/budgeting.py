"""Give every family a width: the least error that a budget of work allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from graphopt.coupling.allocation import Candidates, Fitted
from graphopt.coupling.removal import Plan

__all__ = ["fit_budget"]

Doubles = npt.NDArray[np.float64]

_STEPS = 40


def fit_budget(
    candidates: Candidates,
    errors: Mapping[str, Doubles],
    left: Callable[[Plan], float],
    target: float,
) -> Fitted:
    """Widths with the least sum of errors that leave at most `target` of the work.

    `errors[family][k]` is the error with k channels left. Work is priced: at each price every
    family takes the width that is cheapest, given those of the others; the price that meets the
    target is found by bisection, and what is left over is spent on single channels.
    """
    low, high = -14.0, 14.0
    widths = {family.name: 1.0 for family in candidates.families}
    plan = candidates.plan(widths)
    if left(plan) > target:
        return Fitted(plan, left(plan), met=False)
    best = dict(widths)
    current = {family.name: float(family.size) for family in candidates.families}
    for _ in range(_STEPS):
        middle = (low + high) / 2
        current = _priced(candidates, errors, left, current, 10.0**middle)
        if left(candidates.plan(current)) <= target:
            high, best = middle, dict(current)
        else:
            low = middle
    best = _filled(candidates, errors, left, target, best)
    plan = candidates.plan(best)
    return Fitted(plan, left(plan), met=True)


def _priced(
    candidates: Candidates,
    errors: Mapping[str, Doubles],
    left: Callable[[Plan], float],
    start: Mapping[str, float],
    price: float,
) -> dict[str, float]:
    widths = dict(start)
    for family in candidates.families:
        name, size = family.name, family.size
        ends = [left(candidates.plan({**widths, name: float(k)})) for k in (1, size)]
        slope = (ends[1] - ends[0]) / max(size - 1, 1)
        costs = errors[name] + price * slope * np.arange(size + 1)
        widths[name] = float(1 + costs[1:].argmin())
    return widths


def _filled(
    candidates: Candidates,
    errors: Mapping[str, Doubles],
    left: Callable[[Plan], float],
    target: float,
    widths: dict[str, float],
) -> dict[str, float]:
    """Add single channels, the most useful for their work first, while they fit."""
    waiting = {family.name: family.size for family in candidates.families}
    spent = left(candidates.plan(widths))
    while waiting:
        gains: dict[str, float] = {}
        for name, size in list(waiting.items()):
            wider = min(int(widths[name]) + candidates.align, size)
            cost = left(candidates.plan({**widths, name: float(wider)})) - spent
            if wider == widths[name] or spent + cost > target:
                del waiting[name]
                continue
            gains[name] = float(errors[name][int(widths[name])] - errors[name][wider]) / max(
                cost, 1e-12
            )
        if not gains:
            break
        chosen = max(gains, key=lambda name: gains[name])
        widths[chosen] = float(min(int(widths[chosen]) + candidates.align, waiting[chosen]))
        spent = left(candidates.plan(widths))
    return widths
