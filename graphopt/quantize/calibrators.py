"""Calibrators: which range of a tensor's values a grid is to cover."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from graphopt.quantize.grid import Format, Grid, asymmetric
from graphopt.quantize.observed import Observed

__all__ = ["CALIBRATORS", "Calibrator", "shrunk_grid"]

Calibrator = Callable[[Observed, Format], tuple[float, float]]
"""From what was seen of a tensor, and the format it is to get, to the range to be covered."""

_TAIL = 1e-5
_SHRUNK = np.linspace(0.2, 1.0, 81)
_THRESHOLDS = 128
_FINER = 1 / 32

_Doubles = npt.NDArray[np.float64]


def _minmax(seen: Observed, kind: Format) -> tuple[float, float]:
    return seen.low, seen.high


def _average(seen: Observed, kind: Format) -> tuple[float, float]:
    return seen.averages()


def _percentile(seen: Observed, kind: Format) -> tuple[float, float]:
    return seen.quantile(_TAIL), seen.quantile(1 - _TAIL)


def _mse(seen: Observed, kind: Format) -> tuple[float, float]:
    """The range whose rounding and clipping errors have the least mean square.

    Both ends shrink together first, then each by itself.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    values, counts = seen.centers()

    def best(lows: _Doubles, highs: _Doubles) -> tuple[float, float]:
        errors = [
            _square_error(values, counts, asymmetric(float(a), float(b), kind))
            for a, b in zip(lows, highs, strict=True)
        ]
        place = int(np.argmin(errors))
        return float(lows[place]), float(highs[place])

    still = np.ones(len(_SHRUNK))
    low, high = best(low * _SHRUNK, high * _SHRUNK)
    if low < 0 < high:
        low, high = best(low * still, min(2 * high, seen.high) * _SHRUNK)
        low, high = best(max(2 * low, seen.low) * _SHRUNK, high * still)
    return low, high


def shrunk_grid(seen: Observed, kind: Format, limits: tuple[float, float], least: float) -> Grid:
    """The grid that loses least of values once they are clamped to the limits.

    It covers the same part, `least` or more, of the range to either side of 0.
    """
    values, counts = seen.centers()
    values = np.clip(values, *limits)
    low, high = (float(np.clip(end, *limits)) for end in (seen.low, seen.high))
    tried = [asymmetric(low * part, high * part, kind) for part in np.arange(1, least, -_FINER)]
    return min(tried, key=lambda grid: _square_error(values, counts, grid))


def _square_error(values: _Doubles, counts: npt.NDArray[np.int64], grid: Grid) -> float:
    scale, zero = float(grid.scale), float(grid.zero.astype(np.float64))
    steps = np.clip(np.rint(values / scale) + zero, grid.format.low, grid.format.high) - zero
    return float(counts @ (values - steps * scale) ** 2)


def _entropy(seen: Observed, kind: Format) -> tuple[float, float]:
    """The range after which the histogram, rounded to the grid's levels, diverges least.

    Magnitudes are clipped at one threshold; the first bin, where a ReLU puts its zeros, counts
    as the second one does.
    """
    half = len(seen.counts) // 2
    magnitudes = np.asarray(seen.counts[half:] + seen.counts[half:0:-1], np.float64)
    magnitudes[0] = magnitudes[1]
    levels = (kind.high - kind.low + 1) // (2 if seen.low < 0 else 1)
    filled = int(np.flatnonzero(magnitudes).max(initial=0)) + 1
    if filled <= levels:
        return seen.low, seen.high
    candidates = np.unique(np.linspace(levels, filled, _THRESHOLDS).astype(int))
    found = [_divergence(magnitudes, int(count), levels) for count in candidates]
    threshold = candidates[int(np.argmin(found))] * seen.width
    return max(seen.low, -float(threshold)), min(seen.high, float(threshold))


def _divergence(magnitudes: _Doubles, count: int, levels: int) -> float:
    """Kullback and Leibler's, of the first `count` bins from what `levels` levels keep of them."""
    kept = magnitudes[:count]
    wanted = kept.copy()
    wanted[-1] += magnitudes[count:].sum()
    level = np.arange(count) * levels // count
    filled = kept > 0
    sums = np.bincount(level, kept, levels)
    sizes = np.bincount(level[filled], minlength=levels)
    found = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0.0)
    both = (wanted > 0) & (found > 0)
    lost = wanted[~both].sum() / wanted.sum()
    p, q = wanted[both] / wanted.sum(), found[both] / found.sum()
    return float((p * np.log(p / q)).sum() + lost)


CALIBRATORS: Mapping[str, Calibrator] = MappingProxyType(
    {
        "average": _average,
        "entropy": _entropy,
        "minmax": _minmax,
        "mse": _mse,
        "percentile": _percentile,
    }
)
"""By name: the moving average of extremes, least divergence, extremes, least square error, and
extremes less 0.001 % of the values at either end."""
