"""How much of a training is over: by steps, or by time, whichever is further."""

from __future__ import annotations

import math
import time

from lightning_fabric import Fabric

from graphopt.train.plan import Plan

__all__ = ["Pace"]

_REPORT_SECONDS = 0.5


class Pace:
    """The clock of one training. All processes go by that of the first."""

    def __init__(self, plan: Plan, epoch_steps: int, fabric: Fabric, began: float) -> None:
        """`began` is when the time budget started to count, by `time.perf_counter`."""
        self._fabric, self._began, self._reported = fabric, began, -math.inf
        epochs = plan.most_epochs
        self.steps = math.inf if math.isinf(epochs) else max(round(epochs * epoch_steps), 1)
        self._budget = math.inf if plan.minutes is None else 60 * plan.minutes
        self._start = self.elapsed()
        self._reserve = 0.0

    def elapsed(self) -> float:
        """Seconds spent, also before an interruption."""
        return time.perf_counter() - self._began

    def resume(self, elapsed: float, start: float) -> None:
        """Count on from a checkpoint: what was spent, and what of it before the first step."""
        self._began = time.perf_counter() - elapsed
        self._start = start

    @property
    def start(self) -> float:
        """Seconds that preparations took."""
        return self._start

    def first_step(self, reserve: float) -> None:
        """Preparations are over; `reserve` seconds are needed after the last step."""
        self._start, self._reserve = self.elapsed(), reserve

    def done(self, step: int) -> float:
        """The part that is over before step `step`, 0 to 1; the middle of the step counts."""
        by_steps = 0.0 if math.isinf(self.steps) else (step + 0.5) / self.steps
        return min(max(by_steps, self._by_time()), 1.0)

    def _by_time(self) -> float:
        if math.isinf(self._budget):
            return 0.0
        left = self._budget - self._reserve - self._start
        done = (self.elapsed() - self._start) / left if left > 0 else 1.0
        return done if self._fabric.world_size == 1 else float(self._fabric.broadcast(done))

    def wants_report(self) -> bool:
        """Whether it is time to show progress again."""
        now = time.perf_counter()
        if now - self._reported < _REPORT_SECONDS:
            return False
        self._reported = now
        return True

    def left(self, done: float) -> str:
        """How long it will take from here, in words."""
        if done <= 0:
            return "time left unknown"
        seconds = (self.elapsed() - self._start) / done * (1 - done)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
