"""Time the whole model with layers replaced: what counts in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.factorize.choosing import by_budget
from graphopt.factorize.offers import Offer
from graphopt.factorize.surveying import with_offers
from graphopt.ir import Graph
from graphopt.runtime.benchmark import BenchPlan, BenchResult, bench

__all__ = ["Timer", "not_slower", "within_time"]

_ROUNDS = 4
"""Savings of single layers do not quite add up: what is missing is asked for again."""


@dataclass(frozen=True, eq=False)
class Timer:
    """Times variants of a graph against the graph itself, in turn."""

    graph: Graph
    feeds: Mapping[str, np.ndarray]
    threads: int = 1

    def time(self, chosen: Mapping[str, Offer]) -> BenchResult:
        plan = BenchPlan(threads=self.threads, pairs=20, max_seconds=10.0)
        return bench(self.graph, with_offers(self.graph, chosen)[0], feeds=self.feeds, plan=plan)


def not_slower(chosen: Mapping[str, Offer], timer: Timer) -> dict[str, Offer]:
    """What is left of a choice when the model with it is no slower than before.

    Of a slower one the half goes that was measured to gain least.
    """
    kept = dict(sorted(chosen.items(), key=lambda item: -item[1].saved_ms))
    while kept:
        timing = timer.time(kept)
        if timing.ratio is not None and timing.ratio <= 1:
            break
        kept = dict(list(kept.items())[: len(kept) // 2])
    return kept


def within_time(
    offers: Mapping[str, Sequence[Offer]], timer: Timer, target: float
) -> tuple[dict[str, Offer], float]:
    """Offers with which a run takes at most the part `target` of its time; what it takes.

    The fastest that was found comes back if none is fast enough.
    """
    best, reached, wanted = dict[str, Offer](), 1.0, 1 - target
    total = timer.time({}).a.median_ms
    for _ in range(_ROUNDS):
        tried = by_budget(offers, lambda _, offer: offer.saved_ms, wanted * total)
        ratio = timer.time(tried).ratio
        assert ratio is not None, "two models were timed"
        if tried and ratio < reached:
            best, reached = tried, ratio
        if ratio <= target:
            break
        wanted += ratio - target
    return best, reached
