"""What a pass is: options as fields, a promise, its needs, and one method that edits a graph."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from graphopt.data import Dataset, input_specs
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.rewrite import RewriteLog
from graphopt.train import Resources

if TYPE_CHECKING:
    from graphopt.train import History

__all__ = ["NOTES", "Context", "Need", "Note", "Pass", "Promise"]

NOTES = ("graphopt.kept", "graphopt.rescaled", "graphopt.scales")
"""Metadata that say what tensors are beside the original of a run; nobody knows it afterwards."""

Note = str | int | float | bool | None | list["Note"] | dict[str, "Note"]
"""Plain data that a pass leaves for the report."""


class Promise(StrEnum):
    """What a pass guarantees about its result, and so how the manager checks it."""

    EXACT = "exact"
    """Outputs equal those of the graph before, up to float rounding."""
    CUT = "cut"
    """Outputs equal those of the graph before with the removed channels or blocks masked."""
    LOSSY = "lossy"
    """The function changes; the loss of the metric is measured against the budget."""


class Need(StrEnum):
    """What a pass cannot run without."""

    CALIBRATION = "calibration"
    TRAINING = "training"
    LABELS = "labels"


def _silent(stage: str, fraction: float) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Context:
    """What the manager lends a pass for one run."""

    original: Graph
    """The graph the whole run started from: the teacher, never edited."""
    calibration: Dataset | None = None
    """Inputs to calibrate, refit and train on; never those that measure."""
    evaluate: Callable[[Graph], float] | None = None
    """The user's metric on the held-out part."""
    seed: int = 0
    threads: int = 1
    """For ONNX Runtime and for all that is solved or timed; 0: all cores."""
    training_threads: int | None = None
    """The same for trainings; None: as many as for all else."""
    device: str = "cpu"
    checkpoints: Path | None = None
    """A folder where an interrupted training or calibration leaves what it needs to go on."""
    progress: Callable[[str, float], None] = _silent
    """Called with what is being done and the fraction done."""
    notes: dict[str, Note] = field(default_factory=dict)
    """Filled by the pass; becomes part of its record in the report."""

    def inputs(self, step: Pass, option: str = "") -> Dataset:
        """What to calibrate or train on, as the original takes it.

        Raises RecipeError, naming the step and its option, if nothing was given, and DataError if
        it does not fit.
        """
        if self.calibration is None:
            who = f"{step.name}: {option}".strip()
            raise RecipeError(f"{who} needs inputs to calibrate or train on; give --data")
        return self.calibration.bind(input_specs(self.original))

    def resources(self) -> Resources:
        """What a training in this run may use."""
        threads = self.threads if self.training_threads is None else self.training_threads
        return Resources(self.device, threads, self.seed, self.checkpoints, self.progress)

    def trained(self, history: History) -> None:
        """Note what a training did, and why it ended before its time if it did."""
        self.notes.update(history.as_notes())
        if history.stopped is not None:
            self.notes["unmet"] = [history.stopped]

    def left_alone(self, why: Mapping[str, str]) -> None:
        """Note what a pass could not treat, by name; the first of them is told on the screen."""
        self.notes["left_alone"] = dict[str, Note](why)
        if why:
            first, *others = why
            more = f"; and {len(others)} more" if others else ""
            told = f"{first!r} is left as it was, {why[first]}{more}"
            before = self.notes.get("remark")
            self.notes["remark"] = f"{before}; {told}" if before else told

    def record(self, log: RewriteLog) -> None:
        """Note how often each rule was applied, and what was refused and why."""
        self.notes["applied"] = dict[str, Note](sorted(log.applied.items()))
        self.notes["refused"] = [
            f"{refusal.rule}, {refusal.node}: {refusal.reason}" for refusal in log.refusals
        ]


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A rewriting step. Subclasses are frozen dataclasses whose fields are their options.

    The docstring is the manual, `name` (kebab-case) is what recipes and the command line say.
    """

    name: ClassVar[str]
    promise: ClassVar[Promise]
    needs: ClassVar[frozenset[Need]] = frozenset()

    @abc.abstractmethod
    def run(self, graph: Graph, context: Context) -> None:
        """Edit `graph` in place; keep nothing on the pass."""

    def required(self) -> frozenset[Need]:
        """What the pass cannot run without, its options considered."""
        return self.needs

    def functions(self) -> Mapping[str, str]:
        """Functions of the user's that options name as file.py:function, by option.

        They are looked for before anything runs.
        """
        return {}

    def reference(self, before: Graph, context: Context) -> Graph:
        """The graph whose outputs the result must equal, for passes that promise exact or cut.

        Called after `run`, with the same context; a cut returns its input with the consumers of
        the removed channels masked.
        """
        return before

    def options(self) -> Mapping[str, object]:
        """The options by name, as they were given."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}
