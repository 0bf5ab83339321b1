"""Ranges from histograms: as good as those that all values at once would give."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from graphopt.quantize.calibrators import shrunk_grid
from graphopt.quantize.grid import UINT4, UINT8, Format, Grid, asymmetric
from graphopt.quantize.observed import Observed

Draw = Callable[[np.random.Generator], np.ndarray]
DRAWS: dict[str, Draw] = {
    "bell": lambda rng: rng.standard_normal(20_000),
    "long tail": lambda rng: rng.standard_t(2, 20_000),
    "after a ReLU": lambda rng: np.maximum(rng.standard_normal(20_000), 0),
    "below zero": lambda rng: -rng.random(20_000),
    "constant": lambda rng: np.full(100, 0.3),
    "dead": lambda rng: np.zeros(100),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
@pytest.mark.parametrize("limits", [(-math.inf, math.inf), (0.0, 1.5), (-0.5, 0.7)])
@pytest.mark.parametrize("kind", [UINT4, UINT8], ids=["4 bits", "8 bits"])
def test_a_shrunk_grid_loses_least(draw: Draw, limits: tuple[float, float], kind: Format) -> None:
    values = draw(np.random.default_rng(5)).astype(np.float32)
    parts = np.array_split(values, 7)
    seen = Observed.of(parts[0])
    for part in parts[1:]:
        seen = seen.merge(Observed.of(part))
    clamped = np.clip(values, *limits)

    def loss(grid: Grid) -> float:
        return float(np.square(grid.round(clamped).astype(np.float64) - clamped).sum())

    low, high = float(clamped.min()), float(clamped.max())
    least = min(
        loss(asymmetric(low * part, high * part, kind)) for part in np.arange(1, 0.1, -1 / 32)
    )
    found = shrunk_grid(seen, kind, limits, 0.1)
    assert found.format == kind
    assert found.scale.shape == found.zero.shape == ()
    assert loss(found) <= 1.002 * least + 1e-9
