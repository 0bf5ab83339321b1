"""Compare two models' latency in pairs, on the machine at hand."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.runtime.memory import peak_memory_mb
from graphopt.runtime.session import Model, Session

__all__ = ["NOISE_FLOOR", "BenchPlan", "BenchResult", "Latency", "bench"]

NOISE_FLOOR = 0.02
"""Two sessions of the same model differ by as much, by where their memory happens to lie."""

_SAMPLE_SECONDS = 0.0005  # shorter runs are timed several at once: the clock and the loop cost 1 us
_RESAMPLES = 1000
_CONFIDENCE = (2.5, 97.5)


@dataclass(frozen=True)
class BenchPlan:
    """How long to measure, and how.

    At least `pairs` pairs and `min_seconds`, but no more pairs than `slow_pairs` once `max_seconds`
    have passed. `memory` also measures each model's peak memory, in a process of its own.
    """

    threads: int = 1
    warmup: int = 3
    pairs: int = 50
    slow_pairs: int = 5
    min_seconds: float = 1.0
    max_seconds: float = 20.0
    memory: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Latency:
    """One model's latency for one run, over all samples, and its peak memory if asked for.

    A sample of a very fast model is the mean of several runs. Peak memory is what loading and
    running adds to a process that has just started.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class BenchResult:
    """A's latency, and B's with the ratio B / A: the median over pairs, and its 95 % interval.

    The ratio is the geometric mean of two medians, of the pairs that A began and that B began.
    """

    a: Latency
    b: Latency | None
    ratio: float | None
    interval: tuple[float, float] | None
    pairs: int
    threads: int

    @property
    def verdict(self) -> Literal["faster", "slower", "noise"]:
        """Whether B is faster: the whole interval on one side, the ratio beyond the noise floor."""
        if self.ratio is None or self.interval is None or abs(self.ratio - 1) < NOISE_FLOOR:
            return "noise"
        if self.interval[1] < 1:
            return "faster"
        return "slower" if self.interval[0] > 1 else "noise"


_Sampler = Callable[[], float]


def bench(
    a: Model,
    b: Model | None = None,
    *,
    feeds: Mapping[str, np.ndarray],
    plan: BenchPlan | None = None,
) -> BenchResult:
    """Time A, and B against it: interleaved in one process, the order of a pair alternating.

    Half of the pairs are timed with A loaded first, half with B. Idle worker threads sleep instead
    of spinning, for one model's would be in the other's way (1.5 times slower with two threads).

    Raises RuntimeUnavailable if a model cannot be loaded or run.
    """
    plan = plan or BenchPlan()
    models = [a] if b is None else [a, b]
    rounds = [_round(models, order, feeds, plan) for order in (1, -1)]
    times = np.concatenate(rounds, axis=1)
    peaks = [peak_memory_mb(m, feeds, plan.threads) if plan.memory else None for m in models]
    latencies = [_latency(row, peak) for row, peak in zip(times, peaks, strict=True)]
    if b is None:
        return BenchResult(latencies[0], None, None, None, times.shape[1], plan.threads)
    strata = [times[1, first::2] / times[0, first::2] for first in (0, 1)]
    rng = np.random.default_rng(plan.seed)
    interval = np.percentile(_resampled(strata, rng), _CONFIDENCE)
    return BenchResult(
        latencies[0],
        latencies[1],
        _center(np.array([np.median(stratum) for stratum in strata])).item(),
        (float(interval[0]), float(interval[1])),
        times.shape[1],
        plan.threads,
    )


def _round(
    models: Sequence[Model], order: int, feeds: Mapping[str, np.ndarray], plan: BenchPlan
) -> np.ndarray:
    """Load the models in this order and time them; seconds, as (model, sample)."""
    with ExitStack() as opened:
        sessions = [
            opened.enter_context(Session.open(model, threads=plan.threads, spin=False))
            for model in models[::order]
        ][::order]
        for session in sessions:
            session.run(feeds)  # says what is wrong, if anything is
        samplers = [_sampler(session, feeds, plan.warmup) for session in sessions]
        return _times(samplers, plan)


def _sampler(session: Session, feeds: Mapping[str, np.ndarray], warmup: int) -> _Sampler:
    """Return a call that times one sample: as many runs as the clock needs."""
    run = session.bind(feeds)
    start = time.perf_counter()
    for _ in range(max(warmup, 1)):
        run()
    runs = math.ceil(_SAMPLE_SECONDS / ((time.perf_counter() - start) / max(warmup, 1)))

    def sample() -> float:
        start = time.perf_counter()
        for _ in range(runs):
            run()
        return (time.perf_counter() - start) / runs

    return sample


def _times(samplers: Sequence[_Sampler], plan: BenchPlan) -> np.ndarray:
    """Sample in turn, every other time backwards, until half of the plan is done."""
    rows: list[list[float]] = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        while not _enough(len(rows), time.perf_counter() - start, plan):
            step = -1 if len(rows) % 2 else 1
            rows.append([sample() for sample in samplers[::step]][::step])
    finally:
        if was_enabled:
            gc.enable()
    return np.array(rows).T


def _enough(pairs: int, seconds: float, plan: BenchPlan) -> bool:
    """Whether one of the two rounds is done; an even number of pairs has as many of each order."""
    if pairs % 2:
        return False
    if seconds >= plan.max_seconds / 2:
        return pairs >= plan.slow_pairs / 2
    return pairs >= plan.pairs / 2 and seconds >= plan.min_seconds / 2


def _latency(seconds: np.ndarray, peak_mb: float | None) -> Latency:
    p10, median, p90 = (float(value) for value in np.percentile(seconds * 1e3, (10, 50, 90)))
    return Latency(median, p10, p90, peak_mb)


def _resampled(strata: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Bootstrap the ratio, each order of a pair by itself."""
    medians = []
    for ratios in strata:
        picks = rng.integers(0, len(ratios), (_RESAMPLES, len(ratios)))
        medians.append(np.median(ratios[picks], axis=1))
    return _center(np.array(medians))


def _center(medians: np.ndarray) -> np.ndarray:
    """The geometric mean over both orders: what comes second in a pair finds the caches cold."""
    return np.asarray(np.exp(np.mean(np.log(medians), axis=0)))
