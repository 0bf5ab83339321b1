"""Run a graph over calibration inputs and keep what its tensors show, in constant memory."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.quantize.keeping import Gathered, Kept
from graphopt.quantize.observed import BINS, Observed
from graphopt.runtime.observing import bytes_of_one, observing
from graphopt.runtime.session import Optimize

__all__ = ["Collected", "Effort", "collect"]

_T = TypeVar("_T")
_R = TypeVar("_R")

_BATCH = 8
_BATCH_BYTES = 32 << 20
"""Larger batches are not faster, for the processor's caches, and take more memory."""

_BYTES = 512 << 20
"""What the observed tensors of all batches may hold that are looked at at the same time."""

_FIRST_LOOK = 32
"""After how many inputs ranges are first looked at; then whenever the number has doubled."""

_TAILS = (0.001, 0.999)


@dataclass(frozen=True)
class Effort:
    """How calibration runs, and when it stops: after `seconds`, or once ranges have settled.

    They have settled when doubling the number of inputs has moved no tensor's 0.1 % and 99.9 %
    quantiles by more than the fraction `settled` of the distance between them.

    As many batches run at a time as there are `threads` (0: cores), which changes nothing in what
    is found. A graph that rounds already is better not optimized: integer kernels round otherwise.
    In the folder `checkpoints` what was gathered is kept, every `save_seconds` and in the end: who
    observes the same again goes on from there.
    """

    seconds: float | None = None
    settled: float | None = None
    threads: int = 1
    optimize: Optimize = "all"
    checkpoints: Path | None = None
    save_seconds: float = 30.0


@dataclass(frozen=True)
class Collected:
    """What each tensor has shown, over how many inputs, and why no more were looked at.

    The first `resumed` of the inputs an earlier run had looked at.
    """

    seen: Mapping[str, Observed]
    inputs: int
    stopped: str | None = None
    resumed: int = 0


def collect(
    graph: Graph,
    names: Sequence[str],
    dataset: Dataset,
    effort: Effort,
    *,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Collected:
    """Observe float tensors over a data set.

    Raises DataError for values that are not finite, and where a tensor never has any value.
    """
    kept, gathered = None, None
    if effort.checkpoints is not None:
        kept = Kept(effort.checkpoints, _facts(graph, names, dataset, effort))
        gathered = kept.load(names)
    if gathered is None:
        empty = Observed(np.zeros(BINS, np.int64))
        gathered = Gathered(dict.fromkeys(names, empty), _FIRST_LOOK)
    resumed, saved = gathered.rows, time.perf_counter()
    for now in _gather(graph, dataset, effort, gathered):
        gathered = now
        progress(gathered.rows / len(dataset))
        if kept is not None and time.perf_counter() - saved >= effort.save_seconds:
            kept.save(gathered)
            saved = time.perf_counter()
    if kept is not None and gathered.rows > resumed:
        kept.save(gathered)
    _check(gathered.seen, dataset)
    return Collected(gathered.seen, gathered.rows, gathered.stopped, resumed)


def _facts(graph: Graph, names: Sequence[str], dataset: Dataset, effort: Effort) -> list[str]:
    """What tells one calibration from another: all on which its result depends."""
    how = f"{effort.seconds} {effort.settled} {effort.optimize}"
    return ["calibration", graph.content_hash(), dataset.fingerprint(), how, *names]


def _gather(
    graph: Graph, dataset: Dataset, effort: Effort, gathered: Gathered
) -> Iterator[Gathered]:
    """Go on from what was gathered; what there is after each further batch.

    A batch runs on one thread and batches are merged in their order, so results are the same for
    any number of threads.
    """
    start, began = gathered.rows, time.perf_counter() - gathered.seconds
    if gathered.stopped is not None or next(dataset.rows(1, start), None) is None:
        return
    names = list(gathered.seen)
    each = bytes_of_one(graph, names, dataset)
    size = dataset.fixed_batch or max(1, min(_BATCH, _BATCH_BYTES // each))
    workers = max(1, min(effort.threads or os.cpu_count() or 1, _BYTES // (size * each)))
    with observing(graph, names, optimize=effort.optimize) as values:

        def see(batch: dict[str, np.ndarray]) -> dict[str, Observed]:
            return {name: Observed.of(array) for name, array in values(batch).items()}

        with closing(_in_order(see, dataset.batches(size, start), workers)) as found:
            for rows, seen in zip(dataset.rows(size, start), found, strict=True):
                seconds = time.perf_counter() - began
                gathered = _judged(_merged(gathered, seen, rows.stop, seconds), effort)
                yield gathered
                if gathered.stopped is not None:
                    break


def _in_order(
    function: Callable[[_T], _R], items: Iterable[_T], workers: int
) -> Generator[_R, None, None]:
    """What a function makes of items, in their order, by several threads at once.

    At most one item more is held than there are threads: it is read while they work.
    """
    if workers == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _merged(
    gathered: Gathered, batch: Mapping[str, Observed], rows: int, seconds: float
) -> Gathered:
    seen = {name: entry.merge(batch[name]) for name, entry in gathered.seen.items()}
    return replace(gathered, seen=seen, rows=rows, seconds=seconds)


def _judged(gathered: Gathered, effort: Effort) -> Gathered:
    """Look whether it is enough."""
    rows = gathered.rows
    if effort.settled is not None and rows >= gathered.look:
        now = {name: _tails(entry) for name, entry in gathered.seen.items()}
        if gathered.tails is not None and _still(gathered.tails, now, effort.settled):
            return replace(gathered, stopped=f"ranges had settled after {rows} inputs")
        gathered = replace(gathered, tails=now, look=2 * gathered.look)
    if effort.seconds is not None and gathered.seconds > effort.seconds:
        return replace(
            gathered, stopped=f"{effort.seconds:g} seconds were over after {rows} inputs"
        )
    return gathered


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
