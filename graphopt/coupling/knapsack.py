"""Choose how far to go with each of many, so that enough is saved and the least is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

__all__ = ["Item", "choose"]

Item = tuple[float, float, float]
"""What is chosen (above 0; 0 stands for nothing), what it saves, and what is lost by it."""

_TIE = 1e-9
"""What saving all that can be saved counts as a loss, whatever its unit."""


def choose(items: Mapping[str, Sequence[Item]], wanted: float) -> dict[str, float]:
    """At most one item of each: at least `wanted` is saved together, as little lost as can be.

    Savings add up; of choices that lose alike the one that saves least. If all of them are not
    enough, the choice that saves most.
    """
    names = [name for name in items for _ in items[name]]
    flat = np.array([item for name in items for item in items[name]]).reshape(-1, 3)
    kept = dict.fromkeys(items, 0.0)
    if not len(flat):
        return kept
    ratios, savings, losses = flat.T
    owners = np.array([[name == owner for owner in names] for name in items], np.float64)
    most = float(sum(max((s for _, s, _ in row), default=0.0) for row in items.values()))
    result = milp(
        losses + _TIE * savings.clip(0) / max(most, 1e-30),
        integrality=np.ones(len(flat), np.int64),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(owners, -np.inf, 1),
            LinearConstraint(savings[np.newaxis], min(wanted, most * (1 - 1e-9)), np.inf),
        ],
        options={"time_limit": 10.0},
    )
    if result.x is None:
        return kept
    for place in np.flatnonzero(result.x > 0.5):
        kept[names[place]] = float(ratios[place])
    return kept
