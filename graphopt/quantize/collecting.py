"""Run a graph over calibration inputs and keep what its tensors show, in constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.quantize.observed import BINS, Observed
from graphopt.runtime.observing import batch_size_for, observe
from graphopt.runtime.session import Optimize

__all__ = ["Collected", "Effort", "collect"]

_BATCH = 8
"""Larger batches are not faster, for the processor's caches, and take more memory."""

_FIRST_LOOK = 32
"""After how many inputs ranges are first looked at; then whenever the number has doubled."""

_TAILS = (0.001, 0.999)


@dataclass(frozen=True)
class Effort:
    """When to stop: after `seconds`, or once ranges have settled.

    They have settled when doubling the number of inputs has moved no tensor's 0.1 % and 99.9 %
    quantiles by more than the fraction `settled` of the distance between them.
    """

    seconds: float | None = None
    settled: float | None = None


@dataclass(frozen=True)
class Collected:
    """What each tensor has shown, over how many inputs, and why no more were looked at."""

    seen: Mapping[str, Observed]
    inputs: int
    stopped: str | None = None


def collect(
    graph: Graph,
    names: Sequence[str],
    dataset: Dataset,
    effort: Effort,
    *,
    threads: int = 1,
    optimize: Optimize = "all",
    progress: Callable[[float], None] = lambda fraction: None,
) -> Collected:
    """Observe float tensors over a data set.

    A graph that rounds already is better not optimized: integer kernels round otherwise. Raises
    DataError for values that are not finite, and where a tensor never has any value.
    """
    began = time.perf_counter()
    empty = Observed(np.zeros(BINS, np.int64))
    seen = dict.fromkeys(names, empty)
    done, stopped, before = 0, None, None
    look = _FIRST_LOOK
    size = min(_BATCH, batch_size_for(graph, names))
    for rows, batch in zip(
        dataset.rows(size),
        observe(graph, names, dataset, batch_size=size, threads=threads, optimize=optimize),
        strict=True,
    ):
        for name, array in batch.items():
            seen[name] = seen[name].merge(Observed.of(array))
        done = rows.stop
        progress(done / len(dataset))
        if effort.settled is not None and done >= look:
            now = {name: _tails(entry) for name, entry in seen.items()}
            if before is not None and _still(before, now, effort.settled):
                stopped = f"ranges had settled after {done} inputs"
                break
            before, look = now, 2 * look
        if effort.seconds is not None and time.perf_counter() - began > effort.seconds:
            stopped = f"{effort.seconds:g} seconds were over after {done} inputs"
            break
    _check(seen, dataset)
    return Collected(seen, done, stopped)


def _tails(entry: Observed) -> tuple[float, float]:
    return entry.quantile(_TAILS[0]), entry.quantile(_TAILS[1])


def _still(
    before: Mapping[str, tuple[float, float]], now: Mapping[str, tuple[float, float]], most: float
) -> bool:
    return all(
        max(abs(a - b) for a, b in zip(before[name], tails, strict=True))
        <= most * (max(tails[1], 0.0) - min(tails[0], 0.0))
        for name, tails in now.items()
    )


def _check(seen: Mapping[str, Observed], dataset: Dataset) -> None:
    for name, entry in seen.items():
        if not entry.inputs:
            raise DataError(
                f"calibration: tensor {name!r} had no values in {dataset.spec}; give inputs that "
                "are not empty"
            )
