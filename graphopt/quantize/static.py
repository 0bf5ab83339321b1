"""Static quantization from placement to insertion: calibrate, plan, check, and keep what pays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.quantize.calibrators import CALIBRATORS
from graphopt.quantize.collecting import Collected, Effort
from graphopt.quantize.insertion import insert
from graphopt.quantize.observed import Observed
from graphopt.quantize.paying import paying_units
from graphopt.quantize.placement import Placement, check_patterns, is_quantized, place
from graphopt.quantize.plan import Plan, make_plan
from graphopt.quantize.sensitivity import Errors, decibels, layer_errors, layers_to_free, only
from graphopt.quantize.sources import calibrated, expected
from graphopt.quantize.undoing import to_floats
from graphopt.quantize.upgrading import require_opset
from graphopt.runtime import BenchPlan, bench, example_feeds

__all__ = ["BATCH_NORM", "BEST", "Findings", "Settings", "quantize"]

_JUDGED = 32
"""Inputs on which the outputs' error is measured."""

_OPSET = 13

BATCH_NORM = "batch-norm"
BEST = "best"
_TRIED = ("minmax", "percentile", "mse")

_ROUNDS = 8
_HALVINGS = 24
"""Errors of layers do not quite add up: where they are larger than foreseen, all is chosen anew for
half as much, so many times, with so many plans to be measured at most."""


@dataclass(frozen=True)
class Settings:
    """How to quantize.

    calibrator a name, or "best": of three, the one whose outputs have the least error; or
               "batch-norm": ranges from statistics in the graph, from no inputs
    inputs     the ends of float inputs where no inputs show them
    exclude    patterns of nodes, tensors or operators that stay in floats
    least_db   layers go back to floats until the outputs have this signal over error; None: never
    alone      whether each layer's own error is measured even if nothing has to go back
    pays       whether integers that are not faster by measurement are taken out again
    requantize whether a model that is quantized already is made floats first, or left as it is
    portable   whether results must be the same on processors with and without VNNI
    """

    calibrator: str = "best"
    effort: Effort = field(default_factory=Effort)
    exclude: tuple[str, ...] = ()
    least_db: float | None = None
    pays: bool = False
    portable: bool = False
    threads: int = 1
    inputs: tuple[float, ...] = ()
    requantize: bool = False
    alone: bool = False


@dataclass
class Findings:
    """What a run found out, for the report; `plan` is None where nothing was quantized.

    `judged` is whether there was anything to measure the error of.
    """

    plan: Plan | None = None
    already: bool = False
    undone: int = 0
    calibrator: str | None = None
    why: str | None = None
    collected: Collected | None = None
    judged: bool = True
    decibels: float | None = None
    alone: Mapping[str, float] = field(default_factory=dict)
    freed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unpaid: list[str] = field(default_factory=list)
    ratio: float | None = None
    saturating: Mapping[str, int] = field(default_factory=dict)


Progress = Callable[[str, float], None]


def quantize(
    graph: Graph,
    original: Graph,
    dataset: Dataset | None,
    settings: Settings,
    progress: Progress,
) -> Findings:
    """Quantize a graph in place, or leave it alone and say why.

    Without a data set ranges are those of the statistics that `original` has, and errors of the
    outputs are not known. A model that was quantized before stays in the floats it was made if
    integers do not pay. Raises DataError for inputs that cannot calibrate, RecipeError if neither
    inputs nor statistics show a range or a pattern names nothing, ModelError for an operator
    set that cannot be converted.
    """
    findings = Findings()
    changed = graph.clone()
    if is_quantized(graph):
        if not settings.requantize:
            findings.already = True
            return findings
        findings.undone = to_floats(changed)
    require_opset(changed, _OPSET, "a scale for each channel")
    check_patterns(changed, settings.exclude)
    placement = place(changed, settings.exclude)
    if not any(unit.weight for unit in placement.units):
        findings.why = "no layer has a kernel on integers"
        return _in_floats(graph, changed, findings)
    errors = None
    if dataset is not None:
        errors = Errors.of(changed, dataset.take(_JUDGED), settings.threads)
        findings.judged = errors.judged
    if settings.calibrator == BATCH_NORM:
        seen, findings.unknown = expected(changed, original, settings.exclude, settings.inputs)
        placement = place(changed, settings.exclude, floats=findings.unknown)
    else:
        assert dataset is not None, "calibrators look at inputs"
        assert errors is not None, "and are judged on them"
        findings.collected, seen = calibrated(
            changed, placement, dataset, settings.effort,
            lambda part: progress("calibrating", part),
        )  # fmt: skip
        settings = replace(settings, calibrator=_best(changed, placement, seen, settings, errors))
    findings.calibrator = settings.calibrator
    plan = _planned(changed, placement, seen, settings)
    names = {unit.nodes[0]: unit.name for unit in plan.layers}
    if settings.alone and errors is not None and findings.judged:
        findings.alone = _alone(changed, plan, errors, progress)
    if settings.least_db is not None and errors is not None and findings.judged:
        plan = _near_enough(changed, plan, seen, errors, settings, progress, findings)
    findings.alone = {names[node]: error for node, error in findings.alone.items()}
    findings.freed = [names[node] for node in findings.freed]
    if settings.pays and findings.why is None:
        progress("timing", 0.0)
        plan = _fastest(changed, plan, example_feeds(changed, dataset, 0), settings, findings)
    if findings.why is not None:
        return _in_floats(graph, changed, findings)
    findings.saturating = plan.saturating(changed)
    insert(changed, plan)
    findings.plan = plan
    graph.adopt(changed)
    return findings


def _in_floats(graph: Graph, floats: Graph, findings: Findings) -> Findings:
    """Leave the graph as it was, or, if it was quantized before, as it was made floats."""
    if findings.undone:
        graph.adopt(floats)
    return findings


def _best(
    graph: Graph,
    placement: Placement,
    seen: Mapping[str, Observed],
    settings: Settings,
    errors: Errors,
) -> str:
    """The calibrator that is asked for, or the one that loses the outputs least."""
    if settings.calibrator != BEST:
        return settings.calibrator

    def loss(name: str) -> float:
        plan = _planned(graph, placement, seen, replace(settings, calibrator=name))
        return errors.relative(_inserted(graph, plan))

    return min(_TRIED, key=loss)


def _near_enough(
    graph: Graph,
    plan: Plan,
    seen: Mapping[str, Observed],
    errors: Errors,
    settings: Settings,
    progress: Progress,
    findings: Findings,
) -> Plan:
    """A plan whose outputs are near enough: layers that ruin them go back to floats.

    They are noted by the output of their own node: what they absorb changes once others are freed.
    """
    assert settings.least_db is not None, "there is a limit"
    wanted = budget = 10 ** (-settings.least_db / 10)
    total = reached = errors.relative(_inserted(graph, plan))
    findings.decibels = decibels(total)
    if total <= wanted:
        return plan
    if not findings.alone:
        findings.alone = _alone(graph, plan, errors, progress)
    tried, rounds = plan, 0
    for _ in range(_HALVINGS):
        freed = layers_to_free(graph, plan, findings.alone, total, budget)
        budget /= 2
        if freed == findings.freed:
            continue
        findings.freed = freed
        tried, rounds = _replanned(graph, [*findings.unknown, *freed], seen, settings), rounds + 1
        if not tried.layers:
            findings.why = "every layer ruins the outputs on integers"
            return tried
        reached = errors.relative(_inserted(graph, tried))
        findings.decibels = decibels(reached)
        if reached <= wanted or rounds == _ROUNDS:
            break
    if reached > wanted:
        findings.why = (
            f"outputs keep {findings.decibels:.1f} dB of signal over error, at least "
            f"{settings.least_db:g} are wanted"
        )
    return tried


def _alone(graph: Graph, plan: Plan, errors: Errors, progress: Progress) -> dict[str, float]:
    return layer_errors(graph, plan, errors, lambda part: progress("judging layers", part))


def _inserted(graph: Graph, plan: Plan) -> Graph:
    changed = graph.clone()
    insert(changed, plan)
    return changed


def _replanned(
    graph: Graph, freed: Collection[str], seen: Mapping[str, Observed], settings: Settings
) -> Plan:
    placement = place(graph, settings.exclude, floats=freed)
    return _planned(graph, placement, seen, settings)


def _planned(
    graph: Graph, placement: Placement, seen: Mapping[str, Observed], settings: Settings
) -> Plan:
    name = settings.calibrator
    calibrator = CALIBRATORS["minmax" if name == BATCH_NORM else name]
    return make_plan(graph, placement, seen, calibrator, portable=settings.portable)


def _fastest(
    graph: Graph,
    plan: Plan,
    feeds: Mapping[str, np.ndarray],
    settings: Settings,
    findings: Findings,
) -> Plan:
    """All of a plan or the part that pays by its kernels' times, whichever takes less time."""
    kept = only(plan, paying_units(graph, plan, feeds, threads=settings.threads))
    tried = [plan] if len(kept.placement.units) == len(plan.placement.units) else [plan, kept]
    tried = [entry for entry in tried if any(unit.weight for unit in entry.placement.units)]
    timed = [
        bench(graph, _inserted(graph, entry), feeds=feeds,
              plan=BenchPlan(threads=settings.threads))
        for entry in tried
    ]  # fmt: skip
    best = min(range(len(timed)), key=lambda place: timed[place].ratio or 1.0)
    findings.ratio = timed[best].ratio
    if timed[best].verdict != "faster":
        findings.why = f"integers take {findings.ratio:.2f} times as long as floats here"
    findings.unpaid = [
        unit.name for unit in plan.placement.units if unit not in tried[best].placement.units
    ]
    return tried[best]
