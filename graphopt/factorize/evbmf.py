"""How many singular values of a matrix stand out of noise: the analytic solution of empirical
variational Bayesian matrix factorization (Nakajima, Sugiyama, Babacan, Tomioka 2013).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

__all__ = ["evbmf_rank"]

Doubles = npt.NDArray[np.float64]

_TAU = 2.5129
"""Solves the equation for the threshold at ratio 1; times the root of the ratio it is close."""


def evbmf_rank(values: Doubles, rows: int, columns: int) -> int:
    """The rank of a (rows, columns) matrix with these singular values, largest first; may be 0.

    The variance of the noise is estimated along the way.
    """
    short, long = min(rows, columns), max(rows, columns)
    squares = np.zeros(short)
    squares[: len(values)] = np.asarray(values[:short], np.float64) ** 2
    total = float(squares.sum())
    if total == 0.0:
        return 0
    squares *= short * long / total  # the variance of all entries is 1
    ratio = short / long
    tau = _TAU * math.sqrt(ratio)
    bound = (1 + tau) * (1 + ratio / tau)
    edge = min(math.ceil(short / (1 + ratio)), short) - 1
    lower = max(float(squares[edge]) / (long * bound), float(squares[edge:].mean()) / long)

    def energy(variance: float) -> float:
        return _free_energy(squares / (long * variance), ratio, bound)

    found = minimize_scalar(
        energy, bounds=(min(max(lower, 1e-12), 1 - 1e-9), 1.0), method="bounded"
    )
    return int(np.count_nonzero(squares > long * float(found.x) * bound))


def _free_energy(scaled: Doubles, ratio: float, bound: float) -> float:
    """The free energy but for what no variance changes; its logarithm is in that of `scaled`.

    Those are squared singular values over the longer side and the variance.
    """
    x = np.maximum(scaled, 1e-300)
    large = x[x > bound]
    rest = large - (1 + ratio)
    tau = (rest + np.sqrt(np.maximum(rest**2 - 4 * ratio, 0.0))) / 2
    gain = -tau + np.log(tau + 1) + ratio * np.log(tau / ratio + 1)
    return float(np.sum(x - np.log(x)) + gain.sum())
