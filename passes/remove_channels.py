"""Remove whole channels everywhere they reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphopt.cost import cost
from graphopt.coupling import (
    Coupling,
    Family,
    couple,
    mask,
    prepare,
    remove,
    what_holds,
    why_nothing,
)
from graphopt.coupling.allocation import (
    Allocation,
    Candidates,
    Fitted,
    by_error,
    by_score,
    fit,
    uniform,
)
from graphopt.coupling.importance import COMBINATIONS, IMPORTANCES, importance
from graphopt.coupling.naming import matching_families
from graphopt.coupling.removal import Plan
from graphopt.coupling.selection import balanced
from graphopt.coupling.statistics import GRADIENTS, Statistics
from graphopt.coupling.work import bytes_of, macs_of
from graphopt.data import Dataset
from graphopt.errors import BudgetError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.refit import merged_traces, noted_traces, traces_are_current, traces_of, write_traces
from graphopt.runtime import example_feeds
from graphopt.runtime.calibrating import calibrate
from graphopt.runtime.scanning import errors_of_outputs, fit_latency, latency_ratio, scan
from graphopt.runtime.widths import fast_multiple

__all__ = ["RemoveChannels"]

_DEFAULT_RATIO = 0.5
_WIDE = 16
"""Families that are no wider than twice this have too few channels for blocks to matter."""
_SCANNED = (0.25, 0.5, 0.75)
"""Fractions of a family that a sensitivity scan cuts."""


@dataclass(frozen=True)
class RemoveChannels(Pass):
    """Remove whole channels everywhere they reach.

    Channels that are coupled go together; alike ones form a family, in which those with the least
    `importance` go. `graphopt inspect` lists the families.

    How many go: the fraction `ratio` of all channels (0.5 if nothing is said), or so many that at
    most the fraction `macs` of the multiply-accumulates, `bytes` of the weights' bytes, or
    `latency` of the time that one run takes in ONNX Runtime here is left; `macs` and `bytes` are
    fractions `of` the pass's input, or of the original that the whole run started from. Which
    families lose how much is the `allocation`: uniform (all the same fraction), global (one
    threshold on the scores for all), sensitivity (all cost the same output error on calibration
    inputs, or the same loss of the metric with sensitivity-metric, each cut alone). A latency
    budget weighs what each family's widths were measured to save against the importance that they
    lose.

    `importance`, from the weights: l1, l2, geometric-median, batch-norm-scale, random; from
    `samples` calibration inputs: apoz, mean-activation, activation-variance, hessian-diagonal,
    reconstruction, reconstruction-forward, lasso; from gradients on them: taylor (of activations,
    Molchanov et al. 2017), taylor-weight and taylor-gate (of weights, of BatchNormalization's
    scale and shift, Molchanov et al. 2019), whose loss is that of the labels if the data have any,
    else of labels drawn from what the network predicts. The scores of the tensors that a channel
    runs through, in a common unit, are combined by `combine`: sum, mean or max.

    Widths are multiples of `align`; auto finds by timing how many channels ONNX Runtime here takes
    at a time, where there are convolutions and widths that may not fit. Cut by a ratio alone, what
    stays is rounded up or down so that over all families as much stays as asked for, else up. At
    least one channel stays, and at least the fraction `floor` where an allocation or a budget
    decides. `families` are patterns
    of names, such as ["layer1.*", "!layer1.0.*"]; with "!" they are left alone. What stays is
    noted in the model, for a later `refit`.
    """

    name: ClassVar[str] = "remove-channels"
    promise: ClassVar[Promise] = Promise.CUT
    ratio: float | None = None
    macs: float | None = None
    bytes: float | None = None
    latency: float | None = None
    importance: str = "l2"
    combine: str = "max"
    allocation: Literal["uniform", "global", "sensitivity", "sensitivity-metric"] = "uniform"
    align: int | Literal["auto"] = "auto"
    floor: float = 0.1
    families: tuple[str, ...] = ()
    samples: int = 512
    of: Literal["input", "original"] = "input"

    def __post_init__(self) -> None:
        given = self._amounts()
        for key, value in given.items():
            if not 0.0 < value < 1.0:
                raise RecipeError(f"{self.name}: {key} must be between 0 and 1, got {value}")
        if len(given) > 1:
            raise RecipeError(f"{self.name}: give one of {' and '.join(given)}, not several")
        if self.latency is not None and self.allocation != "uniform":
            raise RecipeError(f"{self.name}: a latency budget allocates by itself; drop allocation")
        for key, number in (("align", self.align), ("samples", self.samples)):
            if number != "auto" and number < 1:
                raise RecipeError(f"{self.name}: {key} must be at least 1, got {number}")
        if not 0.0 <= self.floor < 1.0:
            raise RecipeError(f"{self.name}: floor must be from 0 to below 1, got {self.floor}")
        _check("importance", self.importance, tuple(IMPORTANCES))
        _check("combine", self.combine, tuple(COMBINATIONS))

    def _amounts(self) -> dict[str, float]:
        """The option that says how much goes, if one does."""
        options = {
            "ratio": self.ratio, "macs": self.macs, "bytes": self.bytes, "latency": self.latency
        }  # fmt: skip
        return {key: value for key, value in options.items() if value is not None}

    def required(self) -> frozenset[Need]:
        measured = self.allocation.startswith("sensitivity")
        if measured or IMPORTANCES[self.importance].needs is not None:
            return frozenset({Need.CALIBRATION})
        return self.needs

    def run(self, graph: Graph, context: Context) -> None:
        current = traces_are_current(graph)
        prepare(graph)
        coupling = couple(graph)
        if not coupling.families:
            raise BudgetError(f"{self.name}: {why_nothing(coupling)}")
        candidates = self._candidates(coupling, context)
        fitted = self._fitted(coupling, candidates, context)
        traces = merged_traces(noted_traces(graph), traces_of(coupling, fitted.plan))
        record = remove(graph, coupling, fitted.plan)
        write_traces(graph, traces, current=current)
        families: dict[str, Note] = {name: kept.tolist() for name, kept in fitted.plan.items()}
        context.notes["families"] = families
        context.notes["channels"] = {
            name: {str(axis): _note(kept) for axis, kept in axes.items()}
            for name, axes in record.items()
        }
        blurred = [family.blur for family in coupling.families if not family.exact]
        context.notes["reads_kept_channels_only"] = list(dict.fromkeys(blurred))
        context.notes["left"] = fitted.left
        if not fitted.met:
            context.notes["unmet"] = [self._unmet(coupling, candidates, fitted)]

    def reference(self, before: Graph, context: Context) -> Graph:
        graph = before.clone()
        prepare(graph)
        plan = context.notes["families"]
        assert isinstance(plan, dict), "run has noted which channels stay"
        return mask(couple(graph), {name: np.asarray(kept) for name, kept in plan.items()})

    def _candidates(self, coupling: Coupling, context: Context) -> Candidates:
        """Score the families that are asked for; those the criterion cannot score stay whole."""
        families = matching_families(coupling, self.families, self.name)
        statistics = self._statistics(coupling, families, context)
        scores = {}
        for family in families:
            found = importance(self.importance, family, coupling.graph, statistics, self.combine)
            if found is not None:
                scores[family.name] = found
        unscored: list[Note] = [family.name for family in families if family.name not in scores]
        criterion = IMPORTANCES[self.importance]
        if not scores:
            raise RecipeError(
                f"{self.name}: importance {self.importance!r} scores no family; of "
                f"{families[0].name!r} {criterion.lacks}"
            )
        if unscored:
            context.notes["unscored"] = {criterion.lacks: unscored}
        scored = [family for family in families if family.name in scores]
        align = self._multiple(scored, coupling.graph, context)
        context.notes["align"] = align
        return Candidates(scored, scores, align, 0.0 if self._plain else self.floor)

    @property
    def _plain(self) -> bool:
        """Whether every family loses the same fraction, and no budget is to be met."""
        return self.allocation == "uniform" and not self._amounts().keys() - {"ratio"}

    def _multiple(self, families: Sequence[Family], graph: Graph, context: Context) -> int:
        """What widths are multiples of, measured where that may matter."""
        if self.align != "auto":
            return self.align
        if not any(node.op == "Conv" for node in graph.nodes):
            return 1
        ratio = self._amounts().get("ratio", _DEFAULT_RATIO)
        plain = balanced(families, ratio, 1)
        fits = balanced(families, ratio, _WIDE)
        if all(family.size < 2 * _WIDE for family in families) or (self._plain and plain == fits):
            return 1
        return fast_multiple(lambda part: context.progress("timing widths", part))

    def _statistics(
        self, coupling: Coupling, families: Sequence[Family], context: Context
    ) -> Statistics:
        needs = IMPORTANCES[self.importance].needs
        if needs is None:
            return Statistics(seed=context.seed)
        data = self._inputs(context, f"importance {self.importance!r}")

        def progress(part: float) -> None:
            context.progress("measuring channels", part)

        if needs in GRADIENTS:
            from graphopt.refit.gradients import sense  # brings torch, which others do not need

            return sense(
                coupling, families, data, needs,
                seed=context.seed, threads=context.threads, progress=progress,
            )  # fmt: skip
        return calibrate(
            coupling, families, data, {needs},
            seed=context.seed, threads=context.threads, progress=progress,
        )  # fmt: skip

    def _inputs(self, context: Context, who: str) -> Dataset:
        return context.inputs(self, who).take(self.samples)

    def _fitted(self, coupling: Coupling, candidates: Candidates, context: Context) -> Fitted:
        amounts = self._amounts()
        if self.latency is not None:
            feeds = example_feeds(coupling.graph, context.calibration, context.seed)
            judge = latency_ratio(coupling.graph, feeds, threads=context.threads)
            return fit_latency(
                candidates,
                judge,
                self.latency,
                lambda part: context.progress("timing families", part),
            )
        allocation = self._allocation(coupling, candidates, context)
        if "macs" in amounts or "bytes" in amounts:
            work = macs_of(coupling) if "macs" in amounts else bytes_of(coupling)
            target = next(iter(amounts.values())) * self._whole(coupling.graph, context)
            return fit(candidates, allocation, work.left, target)
        ratio = amounts.get("ratio", _DEFAULT_RATIO)
        if self._plain:
            plan = candidates.plan(balanced(candidates.families, ratio, candidates.align))
            return Fitted(plan, candidates.left(plan), met=True)
        return fit(candidates, allocation, candidates.left, 1 - ratio)

    def _whole(self, graph: Graph, context: Context) -> float:
        """What macs or bytes are fractions of, in units of what the graph has now."""
        if self.of == "input":
            return 1.0
        now, first = cost(graph), cost(context.original)
        if self.macs is not None:
            return first.macs / max(now.macs, 1)
        return first.weight_bytes / max(now.weight_bytes, 1)

    def _allocation(
        self, coupling: Coupling, candidates: Candidates, context: Context
    ) -> Allocation:
        if self.allocation == "uniform":
            return uniform(candidates)
        if self.allocation == "global":
            return by_score(candidates)
        judge = self._judge(coupling, context)
        curves = scan(
            candidates,
            _SCANNED,
            judge,
            lambda part: context.progress("scanning families", part),
        )
        return by_error(candidates, curves)

    def _judge(self, coupling: Coupling, context: Context) -> Callable[[Plan], float]:
        if self.allocation == "sensitivity":
            inputs = self._inputs(context, "allocation 'sensitivity'")
            return errors_of_outputs(coupling, inputs, threads=context.threads)
        evaluate = context.evaluate
        if evaluate is None:
            raise RecipeError(
                f"{self.name}: allocation 'sensitivity-metric' needs a metric; give --data"
            )
        whole = evaluate(coupling.graph)
        return lambda plan: abs(evaluate(mask(coupling, plan)) - whole)

    def _unmet(self, coupling: Coupling, candidates: Candidates, fitted: Fitted) -> str:
        (option, wanted), *_ = self._amounts().items()
        text = f"{option} {wanted:g}: the least that a cut was found to leave is {fitted.left:.3f}"
        held = what_holds(coupling)
        if held:
            text += f"; {held}"
        left_out = len(coupling.families) - len(candidates.families)
        if left_out:
            text += f"; {left_out} families were left out"
        if candidates.align > 1:
            text += f"; widths are multiples of {candidates.align}"
        return f"{text}; floor keeps {self.floor:g} of every family"


def _check(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(
            f"remove-channels: {option} must be one of {', '.join(known)}, got {value!r}"
        )


def _note(kept: list[int] | list[list[int]]) -> Note:
    return [entry if isinstance(entry, int) else list(entry) for entry in kept]
