"""What calibration has seen of one tensor, in memory of a fixed size.

A histogram of bins whose width is a power of two, and 0 in the middle of a bin twice as wide. Where
values do not fit, the width doubles and neighbouring bins are merged, so the result depends neither
on how the inputs are cut into batches nor on who saw which of them: `merge` of two parts equals the
whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.ir import Array

__all__ = ["BINS", "Observed"]

BINS = 8192
"""Half of them above 0: at least eight for each step of an unsigned 8-bit grid."""

_HALF = BINS // 2
_LEAST_EXPONENT = -100
_CHUNK = 2**15
"""Values that are binned at once: what that makes stays in the processor's cache."""

_SHARE = 0.01
"""How much of the moving average one input makes up, as onnxruntime's `averaging_constant`."""

_Counts = npt.NDArray[np.int64]
_Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Observed:
    """Extremes, histogram and moving average of a tensor's values.

    Bin BINS / 2 + i counts the values x with trunc(x / width) = i; the histogram spans
    (-2**exponent, 2**exponent). `faded` holds the sums over inputs of their least and
    largest value, each input weighing 0.99 times what the next one weighs. An input is an index
    of axis 0.
    """

    counts: _Counts
    exponent: int = _LEAST_EXPONENT
    low: float = math.inf
    high: float = -math.inf
    faded: tuple[float, float] = (0.0, 0.0)
    inputs: int = 0

    @classmethod
    def of(cls, array: Array) -> Observed:
        """What one batch of finite values shows; a batch without values shows nothing."""
        if not array.size:
            return cls(np.zeros(BINS, np.int64))
        values = array.astype(np.float32, copy=False)
        rows = values.reshape(len(values) if values.ndim else 1, -1)
        lows, highs = rows.min(1), rows.max(1)
        low, high = float(lows.min()), float(highs.max())
        most = max(-low, high, math.ldexp(0.5, _LEAST_EXPONENT))
        exponent = math.frexp(most)[1]
        counts = _histogram(values.reshape(-1), exponent)
        weights = (1 - _SHARE) ** np.arange(len(rows))[::-1]
        faded = float(weights @ lows), float(weights @ highs)
        return cls(counts, exponent, low, high, faded, len(rows))

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2.0**self.exponent / _HALF

    def merge(self, later: Observed) -> Observed:
        """What the inputs of both show; only the moving average asks which came first."""
        exponent = max(self.exponent, later.exponent)
        fading = (1 - _SHARE) ** later.inputs
        low, high = (a * fading + b for a, b in zip(self.faded, later.faded, strict=True))
        return Observed(
            self._coarsened(exponent) + later._coarsened(exponent),
            exponent,
            min(self.low, later.low),
            max(self.high, later.high),
            (low, high),
            self.inputs + later.inputs,
        )

    def averages(self) -> tuple[float, float]:
        """The moving averages of the inputs' least and largest values."""
        total = (1 - (1 - _SHARE) ** self.inputs) / _SHARE
        return self.faded[0] / total, self.faded[1] / total

    def quantile(self, share: float) -> float:
        """The value that a share of all values does not exceed: the outer end of its bin."""
        summed = np.cumsum(self.counts)
        place = int(np.searchsorted(summed, share * summed[-1]))
        step = min(place, BINS - 1) - _HALF
        edge = step + int(step >= 0) if share > 0.5 else step - int(step <= 0)
        return min(max(edge * self.width, self.low), self.high)

    def centers(self) -> tuple[_Doubles, _Counts]:
        """The middles of the bins that hold anything, and how many values each holds."""
        used = np.flatnonzero(self.counts)
        steps = used - _HALF
        return (steps + 0.5 * np.sign(steps)) * self.width, self.counts[used]

    def _coarsened(self, exponent: int) -> _Counts:
        """The histogram with the wider bins of a larger exponent."""
        steps = exponent - self.exponent
        if steps == 0:
            return self.counts
        places = np.arange(BINS) - _HALF
        bins = np.sign(places) * (np.abs(places) >> min(steps, 62))
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, bins + _HALF, self.counts)
        return counts


def _histogram(values: npt.NDArray[np.float32], exponent: int) -> _Counts:
    """How many values each bin holds; scaling by a power of two rounds nothing."""
    counts = np.zeros(BINS, np.int64)
    scale = np.float32(math.ldexp(_HALF, -exponent))
    for start in range(0, values.size, _CHUNK):
        places = (values[start : start + _CHUNK] * scale).astype(np.int64)
        places += _HALF
        counts += np.bincount(places, minlength=BINS)
    return counts
