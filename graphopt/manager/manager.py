"""The pass manager: resolve, run, verify, gate, measure, record, and roll back what fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TypedDict, Unpack

from graphopt.data import Dataset, input_specs, load_function, source_digest
from graphopt.errors import DataError, RecipeError
from graphopt.ir import Graph
from graphopt.manager.gate import Gate
from graphopt.manager.judge import Judge, check_start, split_data
from graphopt.manager.record import Measured, PassRecord, Report, Size, size_of, size_of_source
from graphopt.manager.stages import Outcome, Runner, Silent, Watcher
from graphopt.manager.workspace import Workspace, stage_key
from graphopt.notation import spec
from graphopt.passbase import NOTES, Need, Pass, Promise
from graphopt.recipe import Recipe, Stage, load_recipe, read_steps
from graphopt.runtime import BenchPlan, BenchResult, bench

__all__ = ["PassManager", "Request", "Result"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What a run is to reach and how it is to be done.

    `max_drop` bounds the loss of the metric (a fraction: 0.01 is one point of top-1).
    `target_latency` is a ratio to the original if `relative`, else milliseconds. Without a number
    of `threads` (0: all cores) networks are run, and timed, on one and trained on all cores.
    """

    metric: str | None = None
    max_drop: float | None = None
    target_latency: float | None = None
    relative: bool = True
    workdir: Path | None = None
    failures: Path = Path("graphopt-failures")
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    measure: bool = True

    @property
    def run_threads(self) -> int:
        return 1 if self.threads is None else self.threads

    @property
    def training_threads(self) -> int:
        return self.threads or 0


class Options(TypedDict, total=False):
    """The fields of a Request as keyword arguments."""

    metric: str | None
    max_drop: float | None
    target_latency: float | None
    relative: bool
    workdir: Path | None
    failures: Path
    seed: int
    threads: int | None
    device: str
    measure: bool


@dataclass(frozen=True)
class Result:
    """The optimized graph and what is known about it."""

    graph: Graph
    report: Report


class PassManager:
    """Runs stages of passes over a graph.

    Every name and option is resolved here, before any model is loaded. Raises RecipeError if one
    is wrong.
    """

    def __init__(self, steps: Sequence[object] | Recipe | str) -> None:
        """Take stages as plain data, a Recipe, or the name of one."""
        if isinstance(steps, str):
            steps = load_recipe(steps)
        self.stages = steps.stages if isinstance(steps, Recipe) else read_steps(steps)
        if not any(stage.passes for stage in self.stages):
            raise RecipeError("pass manager: there are no passes to run; name at least one")

    def run(
        self,
        graph: Graph,
        *,
        data: Dataset | None = None,
        eval_data: Dataset | None = None,
        watcher: Watcher | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Optimize a copy of `graph`; the graph itself is not touched. `options` are a Request's.

        `data` is split into a part that calibrates and trains and one that measures, unless
        `eval_data` are given to measure on. Raises RecipeError if passes need data and there are
        none, DataError if they do not fit, ModelError if the graph breaks a rule of ONNX. Whatever
        else goes wrong with a stage rolls it back, and the run goes on with the best so far.
        """
        request = Request(**options)
        check_start(graph, data, eval_data)
        self.check(has_data=data is not None)
        specs = input_specs(graph) if data or eval_data else ()
        calibration, held_out = split_data(
            data and data.bind(specs), eval_data and eval_data.bind(specs), request.seed
        )
        self._check_labels(calibration)
        gate = Gate(graph, calibration, seed=request.seed, threads=request.run_threads)
        judge = self._judge(graph, held_out, request)
        runner = Runner(
            graph, gate, calibration, judge, request.seed, request.run_threads,
            request.training_threads, request.device, watcher or Silent(), _workspace(request),
        )  # fmt: skip
        before = size_of_source(graph)
        outcome = Outcome(graph.clone(), before)
        _forget_notes(outcome.graph)
        for row in _rows(self.stages):
            outcome = self._row(runner, row, outcome, request)
        _forget_notes(outcome.graph)
        runner.watcher.started("measuring the result")
        return self._report(graph, before, outcome, gate, judge, request)

    def check(self, *, has_data: bool) -> None:
        """Raise what is known to go wrong whatever the model: data or files that are not there."""
        for step in self._steps():
            if not has_data and step.required() & {Need.CALIBRATION, Need.TRAINING}:
                raise RecipeError(
                    f"pass {spec(step)!r}: needs inputs to calibrate or train on; give --data"
                )
            for option, text in step.functions().items():
                load_function(text, f"{step.name}: {option}")

    def _check_labels(self, data: Dataset | None) -> None:
        for step in self._steps():
            if data is not None and data.labels is None and Need.LABELS in step.required():
                raise DataError(
                    f"pass {spec(step)!r}: {data.spec} has no labels; give class folders or an "
                    "array `labels`, or use distill, which needs none"
                )

    def _steps(self) -> Iterator[Pass]:
        return (step for stage in self.stages for step in stage.passes)

    def _judge(self, graph: Graph, held_out: Dataset | None, request: Request) -> Judge | None:
        if held_out is None:
            if request.metric is not None or request.max_drop is not None:
                raise RecipeError("metric: there are no data to measure it on; give --data")
            return None
        return Judge(graph, held_out, request.metric, request.run_threads)

    def _row(
        self, runner: Runner, row: tuple[Stage, ...], outcome: Outcome, request: Request
    ) -> Outcome:
        """Run a row, or take its result from the work directory.

        What follows begins with what was written there, so that a run that goes on finds the same.
        """
        workspace = runner.workspace
        if workspace is None or request.workdir is None:
            return self._checked(runner, row, outcome, request)
        key = stage_key(outcome.graph, row, *_facts(runner, row, request))
        known = workspace.load(key)
        if known is not None:
            _LOG.info("taken from the work directory: %s", key)
            return outcome.then(known[0], known[1])
        after = self._checked(runner, row, outcome, request)
        new = after.records[len(outcome.records) :]
        if not all(record.accepted for record in new):
            return after
        workspace.save(key, after.graph, new)
        written = workspace.load(key)
        return after if written is None else replace(after, graph=written[0])

    def _checked(
        self, runner: Runner, row: tuple[Stage, ...], outcome: Outcome, request: Request
    ) -> Outcome:
        if all(step.promise is Promise.EXACT for stage in row for step in stage.passes):
            return runner.exact(row, outcome)
        return runner.stage(row[0], outcome, request.max_drop)

    def _report(
        self,
        graph: Graph,
        before: Size,
        outcome: Outcome,
        gate: Gate,
        judge: Judge | None,
        request: Request,
    ) -> Result:
        unmet = [
            f"{record.name}: {record.reason}"
            for record in outcome.records
            if not record.accepted and record.promise != Promise.EXACT
        ]
        unmet.extend(_short_of(outcome.records))
        value = None if judge is None else judge.evaluate(outcome.graph)
        drop = judge.drop(value) if judge and value is not None else None
        if drop is not None and request.max_drop is not None and drop > request.max_drop:
            unmet.append(f"max drop {request.max_drop:g}: the result lost {drop:.4g}")
        baseline = Measured(before, metric=judge.baseline if judge else None)
        result = Measured(size_of(outcome.graph), metric=value)
        timing = None
        if request.measure and gate.feeds:
            plan = BenchPlan(threads=request.run_threads, seed=request.seed)
            timing = bench(graph, outcome.graph, feeds=gate.feeds[0], plan=plan)
            baseline = replace(baseline, latency=timing.a)
            result = replace(result, latency=timing.b)
            unmet.extend(_missed(timing, request))
        elif request.target_latency is not None:
            why = "the model could not be run" if request.measure else "measuring was turned off"
            unmet.append(f"target latency: not measured, {why}")
        report = Report(
            metadata.version("graphopt"), request.seed, baseline, result, outcome.records,
            metric=judge.name if judge else None, max_drop=request.max_drop,
            drop=drop, bench=timing, gate=gate.unavailable or "checked in ONNX Runtime",
            unmet=tuple(unmet), doubt=judge.doubt if judge else None,
        )  # fmt: skip
        return Result(outcome.graph, report)


def _facts(runner: Runner, row: tuple[Stage, ...], request: Request) -> Iterator[str]:
    """All that the result of a row depends on beside the graph and the passes."""
    yield metadata.version("graphopt")
    yield str(request.seed)
    yield str(request.max_drop)
    yield runner.calibration.fingerprint() if runner.calibration else ""
    yield runner.judge.fingerprint if runner.judge else ""
    for step in (step for stage in row for step in stage.passes):
        yield from map(source_digest, step.functions().values())


def _workspace(request: Request) -> Workspace:
    """Where stages are kept if they are to be, and reproducers of failures in any case."""
    workspace = Workspace(request.workdir or request.failures, resumes=request.workdir is not None)
    if request.workdir is not None:
        workspace.prepare()
    return workspace


def _forget_notes(graph: Graph) -> None:
    """Drop what passes note in the model for passes of the same run."""
    for key in NOTES:
        graph.set_metadata(key, None)


def _rows(stages: Sequence[Stage]) -> Iterator[tuple[Stage, ...]]:
    """Runs of exact stages, which share one gate, and every other stage by itself."""
    row: list[Stage] = []
    for stage in stages:
        if all(step.promise is Promise.EXACT for step in stage.passes):
            row.append(stage)
            continue
        if row:
            yield tuple(row)
            row = []
        yield (stage,)
    if row:
        yield tuple(row)


def _short_of(records: Sequence[PassRecord]) -> Iterator[str]:
    """What accepted passes did not reach, as they say in their note `unmet`."""
    for record in records:
        reasons = record.notes.get("unmet")
        if record.accepted and isinstance(reasons, list):
            yield from (f"{record.name}: {reason}" for reason in reasons)


def _missed(timing: BenchResult, request: Request) -> Iterator[str]:
    if request.target_latency is None or timing.ratio is None or timing.b is None:
        return
    reached, unit = (timing.ratio, "x") if request.relative else (timing.b.median_ms, "ms")
    if reached > request.target_latency:
        yield f"target latency {request.target_latency:g}{unit}: reached {reached:.3g}{unit}"
