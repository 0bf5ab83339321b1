"""Order channels by how well a layer's sum over them is reconstructed from those that stay.

All works on the Gram matrix G of what the channels contribute to the layer: leaving out the
channels in v costs v'Gv of 1'G1, the mean square of the whole sum.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram

__all__ = ["backward", "forward", "lasso"]

_Gram = npt.NDArray[np.float64]


def backward(gram: _Gram) -> _Gram:
    """Let channels go one by one, each time the one after which the sum is changed least.

    A channel's score is the error, relative to the whole sum, once it has gone too.
    """
    size = len(gram)
    scores = np.empty(size)
    with_gone = np.zeros(size)  # G v
    error = worst = 0.0
    diagonal = gram.diagonal()
    waiting = np.ones(size, np.bool_)
    for _ in range(size):
        costs = np.where(waiting, error + 2 * with_gone + diagonal, np.inf)
        chosen = int(costs.argmin())
        error = float(costs[chosen])
        # The error may fall again, the scores must not: they say who goes first.
        worst = max(float(np.nextafter(worst, np.inf)), error)
        scores[chosen] = worst
        waiting[chosen] = False
        with_gone += gram[chosen]
    return scores / _total(gram)


def forward(gram: _Gram) -> _Gram:
    """Take channels one by one, each time the one that with a least-squares fit explains most.

    A channel's score is the error that was left before it came.
    """
    left = gram.copy()
    covariance = gram.sum(axis=1)
    error = _total(gram)
    scores = np.zeros(len(gram))
    waiting = np.ones(len(gram), np.bool_)
    tiny = 1e-12 * max(float(gram.diagonal().max()), 1e-300)
    for _ in range(len(gram)):
        power = left.diagonal()
        usable = waiting & (power > tiny)
        if not usable.any():
            break
        gains = np.where(usable, covariance**2 / np.where(usable, power, 1.0), -1.0)
        chosen = int(gains.argmax())
        scores[chosen] = max(error, 0.0)
        error -= float(gains[chosen])
        waiting[chosen] = False
        column = left[chosen] / power[chosen]
        covariance = covariance - column * covariance[chosen]
        left = left - np.outer(column, left[chosen])
    return scores / _total(gram)


def lasso(gram: _Gram) -> _Gram:
    """The strongest penalty at which a channel still has a part in the sum."""
    scale = gram / _total(gram)
    with warnings.catch_warnings():
        # A channel that repeats others is dropped, with a warning, as it should be.
        warnings.simplefilter("ignore", ConvergenceWarning)
        penalties, _, path = lars_path_gram(scale.sum(axis=1), scale, n_samples=1, method="lasso")
    active = path != 0
    return np.asarray(np.where(active, penalties, 0.0).max(axis=1), np.float64)


def _total(gram: _Gram) -> float:
    return max(float(gram.sum()), 1e-300)
