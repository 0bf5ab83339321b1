"""Run one row of exact passes, or one stage of other passes, and decide whether it stays."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from graphopt.data import Dataset
from graphopt.errors import DataError, GraphoptError, NotFinite, RecipeError, TargetError
from graphopt.ir import Graph
from graphopt.manager.gate import Gate, Verdict
from graphopt.manager.judge import Judge
from graphopt.manager.record import PassRecord, Size, size_of
from graphopt.manager.workspace import Workspace
from graphopt.notation import spec
from graphopt.passbase import Context, Note, Pass, Promise
from graphopt.recipe import Stage

__all__ = ["Outcome", "PassFailure", "Runner", "Silent", "Watcher"]

_LOG = logging.getLogger(__name__)

_REQUEST_ERRORS = (DataError, NotFinite, RecipeError, TargetError)
"""Errors of the request: they end the run; all others end only the stage they occur in."""


class PassFailure(Exception):
    """A pass failed in a way nobody foresaw: our fault, with a reproducer."""


class _GivenUp(Exception):
    """A pass says that it cannot do its work on this graph."""

    def __init__(self, step: Pass, reason: str) -> None:
        super().__init__(reason)
        self.step, self.reason = step, reason


class Watcher(Protocol):
    """Is told what a run is doing."""

    def started(self, step: str) -> None: ...

    def progress(self, what: str, fraction: float) -> None: ...

    def finished(self, record: PassRecord) -> None: ...


class Silent:
    """A watcher that shows nothing."""

    def started(self, step: str) -> None:
        """Ignore."""

    def progress(self, what: str, fraction: float) -> None:
        """Ignore."""

    def finished(self, record: PassRecord) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Outcome:
    """The best graph so far, its size, and the records of all that was tried."""

    graph: Graph
    size: Size
    records: tuple[PassRecord, ...] = ()

    def then(self, graph: Graph, records: Sequence[PassRecord]) -> Outcome:
        size = records[-1].after if records else self.size
        return Outcome(graph, size, (*self.records, *records))


_UNKNOWN = Size(0, 0, 0, 0)
"""For calls that are only replayed, not recorded."""


@dataclass
class _Trace:
    """What one call of a pass has done, or all its calls that found nothing to do."""

    step: Pass
    before: Size
    after: Size
    seconds: float = 0.0
    modified: bool = False
    revision: int = -1  # of the graph when the pass last found nothing to do
    notes: dict[str, Note] = field(default_factory=dict)


@dataclass(frozen=True)
class Runner:
    """What all stages of a run share."""

    original: Graph
    gate: Gate
    calibration: Dataset | None
    judge: Judge | None
    seed: int
    threads: int
    training_threads: int
    device: str
    watcher: Watcher
    workspace: Workspace

    def exact(self, row: Sequence[Stage], best: Outcome) -> Outcome:
        """Run exact stages to their fixed points, with one gate at the end.

        If the gate fails, the steps are bisected; the guilty pass is rolled back, named, and left
        out, and the rest runs again. So does a pass that gives up by itself.
        """
        guilty: dict[Pass, Verdict] = {}
        while True:
            graph = best.graph.clone()
            try:
                traces = self._run_row(row, best, graph, set(guilty))
            except _GivenUp as error:
                guilty[error.step] = Verdict(accepted=False, reason=error.reason)
                continue
            verdict = self.gate.check(best.graph, graph, Promise.EXACT)
            if verdict.accepted:
                break
            steps = [trace.step for trace in traces if trace.modified]
            culprit, why = self._bisect(best.graph, steps)
            guilty[culprit] = why
        size = next((trace.after for trace in traces[::-1] if trace.modified), best.size)
        records = [self._record(trace, verdict) for trace in traces]
        records += [self._record(_Trace(step, size, size), why) for step, why in guilty.items()]
        for record in records:
            self.watcher.finished(record)
        return Outcome(graph, size, (*best.records, *records))

    def _run_row(
        self, row: Sequence[Stage], best: Outcome, graph: Graph, without: set[Pass]
    ) -> list[_Trace]:
        """Run all rounds. Each call that changed something leaves a trace, in order.

        A pass that never changed anything leaves one trace, for all its calls.
        """
        done: list[_Trace] = []
        idle: dict[Pass, _Trace] = {}
        size = best.size
        for stage in row:
            for _ in range(stage.rounds):
                start = graph.revision
                for step in stage.passes:
                    settled = idle.setdefault(step, _Trace(step, size, size))
                    before = graph.revision
                    if step in without or settled.revision == before:
                        continue
                    trace = _Trace(step, size, size)
                    earlier = [entry.step for entry in done]
                    self._call(trace, graph, best.graph, earlier)
                    if graph.revision == before:
                        settled.revision = before
                        settled.seconds += trace.seconds
                        settled.notes.update(trace.notes)
                        continue
                    size = trace.after = size_of(graph)
                    trace.modified = True
                    done.append(trace)
                    _LOG.info("%s: %d -> %d nodes", step.name, trace.before.nodes, size.nodes)
                if graph.revision == start:
                    break
        changed = {trace.step for trace in done} | without
        return done + [trace for step, trace in idle.items() if step not in changed]

    def _bisect(self, start: Graph, steps: Sequence[Pass]) -> tuple[Pass, Verdict]:
        """The first step after which the gate fails, and what it says there."""
        low, high = 0, len(steps)  # the first `low` steps pass, the first `high` fail
        verdict = self.gate.check(start, self._replayed(start, steps), Promise.EXACT)
        while high - low > 1:
            middle = (low + high) // 2
            graph = self._replayed(start, steps[:middle])
            found = self.gate.check(start, graph, Promise.EXACT)
            if found.accepted:
                low = middle
            else:
                high, verdict = middle, found
        return steps[high - 1], verdict

    def _replayed(self, start: Graph, steps: Sequence[Pass]) -> Graph:
        graph = start.clone()
        for place, step in enumerate(steps):
            self._call(_Trace(step, _UNKNOWN, _UNKNOWN), graph, start, steps[:place])
        return graph

    def stage(self, stage: Stage, best: Outcome, max_drop: float | None) -> Outcome:
        """Run a stage whose passes change what the model computes, and check it at its end."""
        graph, size = best.graph.clone(), best.size
        records: list[PassRecord] = []
        for place, step in enumerate(stage.passes):
            trace = _Trace(step, size, size)
            before = graph.clone()
            _LOG.info("%s", spec(step))
            try:
                context = self._call(trace, graph, best.graph, stage.passes[:place])
                reference = step.reference(before, context)
                verdict = self.gate.check(reference, graph, step.promise)
            except _GivenUp as error:
                verdict = Verdict(accepted=False, reason=error.reason)
            if verdict.accepted:
                size = trace.after = size_of(graph)
                trace.modified = graph.fingerprint() != before.fingerprint()
            records.append(self._record(trace, verdict))
            if not verdict.accepted:
                return self._rolled_back(best, records, verdict.reason or "the gate failed")
        value = self.judge.evaluate(graph) if self.judge is not None else None
        records[-1] = replace(records[-1], metric=value)
        if self.judge is not None and value is not None and max_drop is not None:
            drop = self.judge.drop(value)
            if drop > max_drop:
                why = f"{self.judge.name} drops by {drop:.4f}, the budget is {max_drop:g}"
                return self._rolled_back(best, records, why)
        for record in records:
            self.watcher.finished(record)
        return Outcome(graph, size, (*best.records, *records))

    def _rolled_back(self, best: Outcome, records: list[PassRecord], why: str) -> Outcome:
        _LOG.info("rolled back %s: %s", records[-1].name, why)
        failed = [
            replace(record, accepted=False, reason=record.reason or why) for record in records
        ]
        for record in failed:
            self.watcher.finished(record)
        return Outcome(best.graph, best.size, (*best.records, *failed))

    def _call(self, trace: _Trace, graph: Graph, start: Graph, earlier: Sequence[Pass]) -> Context:
        """Run one pass; `start` and the `earlier` steps since it replay an unforeseen failure."""
        step = trace.step
        self.watcher.started(step.name)
        context = Context(
            original=self.original,
            calibration=self.calibration,
            evaluate=self.judge.evaluate if self.judge is not None else None,
            seed=self.seed,
            threads=self.threads,
            training_threads=self.training_threads,
            device=self.device,
            checkpoints=self.workspace.checkpoints,
            progress=self.watcher.progress,
            notes=trace.notes,
        )
        began = time.perf_counter()
        try:
            step.run(graph, context)
        except _REQUEST_ERRORS:
            raise
        except GraphoptError as error:
            raise _GivenUp(step, str(error).removeprefix(f"{step.name}: ")) from error
        except Exception as error:
            replay = ",".join(spec(entry) for entry in (*earlier, step))
            folder = self.workspace.reproducer(start, replay, self.seed)
            raise PassFailure(
                f"pass {step.name!r} failed: {type(error).__name__}: {error}; "
                f"what it failed on is in {folder}, replay it with reproduce.sh"
            ) from error
        trace.seconds += time.perf_counter() - began
        return context

    def _record(self, trace: _Trace, verdict: Verdict) -> PassRecord:
        step = trace.step
        return PassRecord(
            name=step.name,
            options={key: _plain(value) for key, value in step.options().items()},
            promise=str(step.promise),
            seconds=trace.seconds,
            modified=trace.modified and verdict.accepted,
            before=trace.before,
            after=trace.after,
            accepted=verdict.accepted,
            reason=verdict.reason,
            max_abs_diff=verdict.max_abs_diff,
            notes=trace.notes,
        )


def _plain(value: object) -> Note:
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)
