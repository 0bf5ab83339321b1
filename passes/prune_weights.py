"""Set the weights that matter least to zero."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import numpy as np

from graphopt import train
from graphopt.errors import RecipeError
from graphopt.ir import Array, Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.sparse import (
    ALLOCATIONS,
    Allocation,
    choose_weights,
    in_groups,
    keep_weights,
    kept_at,
)
from graphopt.sparse.weights import depth_axis
from graphopt.train import Guided, Hook, Ramp, Surgery

__all__ = ["PruneWeights"]

_GROUPS = re.compile(r"([1-9]\d*):([1-9]\d*)")
_SCHEDULES = ("one-shot", "iterative", "ramp", "surgery", "rewind")
_UNUSED: Mapping[str, tuple[str, ...]] = {
    "one-shot": (*(entry.name for entry in fields(Guided)), "steps", "until"),
    "iterative": ("until",),
    "ramp": ("steps", "holdout"),
    "surgery": ("steps", "holdout"),
    "rewind": ("until",),
}
"""Course -> options that it would ignore."""


_STEPS = 5
"""Shares that weights go in where nothing else is said."""


@dataclass(frozen=True)
class PruneWeights(Guided, Pass):
    """Set the weights that matter least to zero: those of the least magnitude.

    Exactly the part `sparsity` of the weights of Conv, ConvTranspose, Gemm and MatMul is zero in
    the end; biases stay. Which layers lose how many is the `allocation`: uniform (all the same
    part), global (one threshold), deviation (one threshold on magnitudes over each layer's
    standard deviation, Han et al. 2015), lamp (squares over the sum of the larger ones, Lee et al.
    2021). With `groups`, such as "2:4", only 2 of every 4 inputs in a row stay, where a layer's
    inputs can be divided so. `weights` are patterns of names; with "!" they are left alone.

    `course` says how they go:
    one-shot   at once, without data.
    iterative  in `steps` equal shares of what is left, with a training after each (Han et al.
               2015).
    ramp       along a cubic ramp while the network is trained, up to the part `until` of the
               training; what is gone gets no gradient (Zhu & Gupta 2017).
    surgery    so too, but all weights are trained on and come back if they grow (Guo et al. 2016).
    rewind     the network is trained, loses a share, and begins again with the weights it was
               given, `steps` times (lottery tickets, Frankle & Carbin 2019); to be run on a
               network that has not been trained.

    Trainings go by what `learn` says, labels if there are any; the other options are those of
    `finetune`. Only ramp and surgery have no `holdout`: the weights that do best on it may be from
    before their end. Groups are made at once; without them `steps` is 5 unless it is given.
    Options that a course has no use for are refused.

    Later trainings keep zeros zero; what solves layers anew, as `refit`, does not. A file with
    zeros is not smaller by itself: `graphopt pack` makes use of them, and `remove-dead-channels`
    of channels that nothing is left of.
    """

    name: ClassVar[str] = "prune-weights"
    promise: ClassVar[Promise] = Promise.LOSSY
    sparsity: float | None = None
    groups: str | None = None
    allocation: Allocation = "lamp"
    weights: tuple[str, ...] = ()
    course: Literal["one-shot", "iterative", "ramp", "surgery", "rewind"] = "one-shot"
    steps: int | None = None
    until: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sparsity is None) == (self.groups is None):
            raise RecipeError(f"{self.name}: give one of sparsity and groups, as sparsity=0.9")
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise RecipeError(
                f"{self.name}: sparsity must be above 0 and below 1, got {self.sparsity}"
            )
        if self.groups is not None:
            keep, size = _group(self.groups, self.name)
            if keep >= size or self.course in ("ramp", "surgery"):
                raise RecipeError(
                    f"{self.name}: groups={self.groups} keeps fewer than all, and goes with the "
                    f"courses one-shot, iterative and rewind"
                )
        for key, value, known in (
            ("allocation", self.allocation, tuple(ALLOCATIONS)),
            ("course", self.course, _SCHEDULES),
        ):
            if value not in known:
                raise RecipeError(f"{self.name}: {key} is one of {', '.join(known)}, got {value!r}")
        if self.steps is not None and self.steps < 1:
            raise RecipeError(f"{self.name}: steps must be at least 1, got {self.steps}")
        if not 0 < self.until <= 1:
            raise RecipeError(f"{self.name}: until must be above 0 and at most 1, got {self.until}")
        self._check_used()

    def _check_used(self) -> None:
        """Refuse what would be ignored."""
        defaults = {entry.name: entry.default for entry in fields(self)}
        given = [name for name in _UNUSED[self.course] if vars(self)[name] != defaults[name]]
        if given:
            raise RecipeError(
                f"{self.name}: course={self.course} has no use for {' and '.join(given)}; drop "
                f"{'it' if len(given) == 1 else 'them'}, or choose another course "
                f"({', '.join(_SCHEDULES)})"
            )
        if self.groups is None:
            return
        if self.allocation != defaults["allocation"]:
            raise RecipeError(
                f"{self.name}: groups={self.groups} has no use for allocation; drop it"
            )
        if self.steps is not None and self.steps > 1:
            raise RecipeError(
                f"{self.name}: groups={self.groups} are made at once; drop steps={self.steps}"
            )

    def required(self) -> frozenset[Need]:
        if self.course == "one-shot":
            return self.needs
        return frozenset({Need.TRAINING} | ({Need.LABELS} if self.learn == "labels" else set()))

    def run(self, graph: Graph, context: Context) -> None:
        chosen, left_alone = choose_weights(graph, self.weights, self.name)
        if self.course != "one-shot":
            context.inputs(self, f"course={self.course}")
        if self.course in ("ramp", "surgery"):
            self._while_training(graph, context, tuple(chosen))
        elif self.course == "one-shot":
            self._prune(graph, tuple(chosen), 1.0)
        else:
            self._by_rounds(graph, context, tuple(chosen))
        keep_weights(graph, pruned=chosen)
        context.notes["sparsity"] = _sparsities(graph, tuple(chosen))
        context.left_alone({**left_alone, **self._undivided(graph, chosen)})

    def _by_rounds(self, graph: Graph, context: Context, names: tuple[str, ...]) -> None:
        """Prune and train in turn; a rewound network is trained before, too."""
        start = graph.clone()
        if self.course == "rewind":
            self._train(graph, context, self._plan(), ())
        steps = self.steps or (_STEPS if self.groups is None else 1)
        for step in range(1, steps + 1):
            self._prune(graph, names, step / steps)
            if self.course == "rewind":
                _rewind(graph, start, names)
            keep_weights(graph, pruned=names)
            self._train(graph, context, self._plan(), ())

    def _prune(self, graph: Graph, names: tuple[str, ...], way: float) -> None:
        """Prune so far that equal shares of what is left each time lead to the sparsity."""
        weights = {name: _constant(graph, name) for name in names}
        if self.sparsity is not None:
            kept = kept_at(weights, 1 - (1 - self.sparsity) ** way, self.allocation)
        else:
            kept = self._in_groups(graph, weights)
        for name, mask in kept.items():
            graph.set_constant(name, np.where(mask, weights[name], weights[name].dtype.type(0)))

    def _in_groups(self, graph: Graph, weights: Mapping[str, Array]) -> dict[str, np.ndarray]:
        keep, size = _group(self.groups or "", self.name)
        undivided = self._undivided(graph, weights)
        return {
            name: in_groups(weight, depth_axis(graph, name), keep, size)
            for name, weight in weights.items()
            if name not in undivided
        }

    def _undivided(self, graph: Graph, weights: Mapping[str, Array]) -> dict[str, str]:
        """Why weights cannot be pruned in groups."""
        if self.groups is None:
            return {}
        _, size = _group(self.groups, self.name)
        widths = {n: weight.shape[depth_axis(graph, n)] for n, weight in weights.items()}
        return {
            name: f"its {width} inputs are no multiple of {size}"
            for name, width in widths.items()
            if width % size
        }

    def _while_training(self, graph: Graph, context: Context, names: tuple[str, ...]) -> None:
        assert self.sparsity is not None, "a ramp goes to a sparsity"
        hook: Hook
        if self.course == "ramp":
            hook = Ramp(names, self.sparsity, self.allocation, self.until)
        else:
            hook = Surgery(names, self.sparsity, self.allocation, self.until, seed=context.seed)
        # the weights that did best on held-out rows may be ones from before the ramp's end
        self._train(graph, context, replace(self._plan(), holdout=0.0), (hook,))

    def _plan(self) -> Guided:
        options = vars(self)
        return Guided(**{entry.name: options[entry.name] for entry in fields(Guided)})

    def _train(self, graph: Graph, context: Context, plan: Guided, hooks: tuple[Hook, ...]) -> None:
        assert context.calibration is not None, "checked before"
        history = train.recover(
            graph,
            context.original,
            context.calibration,
            plan,
            resources=context.resources(),
            hooks=hooks,
        )
        context.trained(history)


def _group(text: str, who: str) -> tuple[int, int]:
    match = _GROUPS.fullmatch(text)
    if match is None:
        raise RecipeError(f"{who}: groups is how many of how many stay, as 2:4, got {text!r}")
    return int(match[1]), int(match[2])


def _constant(graph: Graph, name: str) -> Array:
    array = graph.constant(name)
    assert array is not None, "weights are constants"
    return array


def _rewind(graph: Graph, start: Graph, names: tuple[str, ...]) -> None:
    """Give every constant the value it started with, but for the zeros of what is pruned."""
    for name, first in start.constants().items():
        now = graph.constant(name)
        if now is None or now.shape != first.shape or now.dtype != first.dtype:
            continue
        graph.set_constant(name, np.where(now != 0, first, now) if name in names else first)


def _sparsities(graph: Graph, names: tuple[str, ...]) -> dict[str, Note]:
    """The part of zeros in every weight, and how many weights are left in all."""
    weights = {name: _constant(graph, name) for name in names}
    left = sum(int(np.count_nonzero(weight)) for weight in weights.values())
    parts: dict[str, Note] = {
        name: 1 - int(np.count_nonzero(weight)) / weight.size for name, weight in weights.items()
    }
    return {"left": left, "of": sum(weight.size for weight in weights.values()), "zeros": parts}
