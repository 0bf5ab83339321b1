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

NOISE_FLOOR = 0.01
"""Smaller differences say more about where a session's memory happens to lie than about a model."""

_SAMPLE_SECONDS = 0.0005  # shorter runs are timed several at once: the clock and the loop cost 1 us
_WARMUP_SECONDS = 0.5
_ROUNDS = 8  # where loading is quick
_LOADS_PER_ROUND = 3  # a round times for at least this many times as long as loading took
_RESAMPLES = 1000
_CONFIDENCE = (2.5, 97.5)


@dataclass(frozen=True)
class BenchPlan:
    """How long to measure, and how.

    At least `pairs` pairs and `min_seconds`, loading included; past `max_seconds`, `slow_pairs` are
    enough. `memory` also measures each model's peak memory, in a process of its own.
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

    With one thread it is processor time, with more it is wall time. A sample of a very fast model
    is the mean of several runs. Peak memory is what loading and running adds to a process that has
    just started.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class BenchResult:
    """A's latency, and B's with the ratio B / A and its 95 % interval (bootstrap).

    The ratio is the median over rounds, each with sessions of its own. A round's ratio is the
    geometric mean of two medians over pairs: those that A began, and those that B began.
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

    Both are loaded anew for every round, A first or B first in turn, because where a session's
    memory happens to lie decides over percents. Idle worker threads sleep instead of spinning, for
    one model's would be in the other's way.

    Raises RuntimeUnavailable if a model cannot be loaded or run.
    """
    plan = plan or BenchPlan()
    models = [a] if b is None else [a, b]
    rounds = _rounds(models, feeds, plan)
    times = np.concatenate(rounds, axis=1)
    peaks = [peak_memory_mb(m, feeds, plan.threads) if plan.memory else None for m in models]
    latencies = [_latency(row, peak) for row, peak in zip(times, peaks, strict=True)]
    if b is None:
        return BenchResult(latencies[0], None, None, None, times.shape[1], plan.threads)
    ratios = [seconds[1] / seconds[0] for seconds in rounds]
    interval = np.percentile(_resampled(ratios, np.random.default_rng(plan.seed)), _CONFIDENCE)
    return BenchResult(
        latencies[0],
        latencies[1],
        float(np.median([_center(ratio[np.newaxis]) for ratio in ratios])),
        (float(interval[0]), float(interval[1])),
        times.shape[1],
        plan.threads,
    )


def _rounds(
    models: Sequence[Model], feeds: Mapping[str, np.ndarray], plan: BenchPlan
) -> list[np.ndarray]:
    """Time round after round, at least two; seconds as (model, pair)."""
    rounds: list[np.ndarray] = []
    start = time.perf_counter()
    while len(rounds) < 2 or not _enough(rounds, time.perf_counter() - start, plan):
        rounds.append(_round(models, -1 if len(rounds) % 2 else 1, feeds, plan))
    return rounds


def _enough(rounds: Sequence[np.ndarray], elapsed: float, plan: BenchPlan) -> bool:
    pairs = sum(len(seconds[0]) for seconds in rounds)
    if elapsed >= plan.max_seconds:
        return pairs >= plan.slow_pairs
    return pairs >= plan.pairs and elapsed >= plan.min_seconds


def _round(
    models: Sequence[Model], order: int, feeds: Mapping[str, np.ndarray], plan: BenchPlan
) -> np.ndarray:
    """Load the models in this order and time them."""
    start = time.perf_counter()
    with ExitStack() as opened:
        sessions = [
            opened.enter_context(Session.open(model, threads=plan.threads, spin=False))
            for model in models[::order]
        ][::order]
        loading = time.perf_counter() - start
        for session in sessions:
            session.run(feeds)  # says what is wrong, if anything is
        samplers = [_sampler(session, feeds, plan) for session in sessions]
        return _times(samplers, max(plan.min_seconds / _ROUNDS, _LOADS_PER_ROUND * loading))


def _sampler(session: Session, feeds: Mapping[str, np.ndarray], plan: BenchPlan) -> _Sampler:
    """Return a call that times one sample: as many runs as the clock needs.

    With one thread ONNX Runtime works in the calling one, and its processor time is what the run
    takes on a machine with nothing else to do; wall time would count others' work as the model's.
    """
    run = session.bind(feeds)
    runs = 1
    clock = time.thread_time if plan.threads == 1 else time.perf_counter

    def sample() -> float:
        start = clock()
        for _ in range(runs):
            run()
        return (clock() - start) / runs

    warm = [sample()]
    while len(warm) < plan.warmup and sum(warm) < _WARMUP_SECONDS:
        warm.append(sample())
    runs = math.ceil(_SAMPLE_SECONDS / min(warm))
    return sample


def _times(samplers: Sequence[_Sampler], seconds: float) -> np.ndarray:
    """Sample in turn, every other time backwards, an even number of times."""
    rows: list[list[float]] = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        while not rows or len(rows) % 2 or time.perf_counter() - start < seconds:
            step = -1 if len(rows) % 2 else 1
            rows.append([sample() for sample in samplers[::step]][::step])
    finally:
        if was_enabled:
            gc.enable()
    return np.array(rows).T


def _latency(seconds: np.ndarray, peak_mb: float | None) -> Latency:
    p10, median, p90 = (float(value) for value in np.percentile(seconds * 1e3, (10, 50, 90)))
    return Latency(median, p10, p90, peak_mb)


def _resampled(rounds: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Bootstrap the ratio: rounds with replacement, and in each its pairs, by who began."""
    centers = []
    for ratios in rounds:
        half = len(ratios) // 2
        picks = 2 * rng.integers(0, half, (_RESAMPLES, 2 * half)) + np.arange(2 * half) % 2
        centers.append(_center(ratios[picks]))
    chosen = rng.integers(0, len(rounds), (len(rounds), _RESAMPLES))
    return np.asarray(np.median(np.array(centers)[chosen, np.arange(_RESAMPLES)], axis=0))


def _center(ratios: np.ndarray) -> np.ndarray:
    """Per row the ratio whoever begins: what comes second in a pair finds the caches cold."""
    medians = [np.median(ratios[:, first::2], axis=1) for first in (0, 1)]
    return np.asarray(np.sqrt(medians[0] * medians[1]))
