"""Train a graph to do what a teacher does; no labels are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from graphopt.data import Dataset
from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.rewrite.matching import is_op
from graphopt.train.batches import Batch, Outputs
from graphopt.train.engine import fit
from graphopt.train.history import History
from graphopt.train.hooks import Hook
from graphopt.train.plan import Lesson, Plan, Resources
from graphopt.train.viewing import adopt_weights, before_softmax, is_scores, sample_outputs

__all__ = [
    "Distillation",
    "Head",
    "attention_map",
    "distill",
    "divergence",
    "hint_tensors",
    "map_tensors",
]

Kept = Mapping[str, Mapping[int, npt.NDArray[np.int64]]]
"""For tensors that are smaller than the teacher's: axis -> the indices that are left."""

Shape = tuple[int | str | None, ...]

_SAMPLE = 16
"""Rows whose outputs show what kinds they are of, and how far they spread."""


_LEAST_SHARE = 1e-8
"""Probabilities below are taken for this."""

_BOUNDED = ("Sigmoid", "HardSigmoid", "Tanh", "Clip", "Relu")
"""Operators behind which stand values, one by one, and no scores of classes."""


@dataclass(frozen=True)
class Head:
    """How one tensor of the student is compared with the teacher's, and how much that counts."""

    kind: Literal["kl", "mse", "attention", "none"]
    weight: float = 1.0
    spread: float = 1.0
    """The variance that squared errors are divided by."""
    kept: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Axes of which the student has only a part, and which indices of the teacher's that is."""
    shares: bool = False
    """Whether scores come as probabilities, whose logarithms are compared."""

    def aim(self, taught: torch.Tensor) -> torch.Tensor:
        """The part of the teacher's tensor that the student still has."""
        for axis, indices in self.kept:
            taught = taught.index_select(axis, torch.tensor(indices, device=taught.device))
        return taught


@dataclass(frozen=True)
class Distillation:
    """The distance of a student's outputs from what it was taught: one head for each."""

    heads: tuple[Head, ...]
    temperature: float

    def __call__(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        losses = [
            head.weight * self._distance(head, output, head.aim(aim))
            for head, output, aim in zip(self.heads, outputs, batch.taught, strict=True)
            if head.kind != "none"
        ]
        return torch.stack(losses).sum()

    def _distance(self, head: Head, output: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
        if head.kind == "kl":
            if head.shares:
                output, aim = (each.clamp_min(_LEAST_SHARE).log() for each in (output, aim))
            return divergence(output, aim, self.temperature)
        if head.kind == "attention":
            apart = attention_map(output) - attention_map(aim)
            return apart.square().sum(1).mean()
        return functional.mse_loss(output, aim.to(output.dtype)) / head.spread


def divergence(scores: torch.Tensor, aim: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL of the softmax at a temperature from the teacher's, times the temperature's square.

    The mean over rows; the factor keeps gradients as large as those of labels (Hinton et al.
    2015).
    """
    found = functional.log_softmax(scores.flatten(1) / temperature, dim=1)
    wanted = functional.log_softmax(aim.flatten(1).to(found.dtype) / temperature, dim=1)
    loss = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return loss * temperature**2


def attention_map(maps: torch.Tensor) -> torch.Tensor:
    """Mean square over channels (axis 1) at each place, as a vector of length 1 for each row."""
    return functional.normalize(maps.float().square().mean(1).flatten(1), dim=1)


def distill(
    graph: Graph,
    teacher: Graph,
    dataset: Dataset,
    plan: Plan,
    lesson: Lesson | None = None,
    *,
    kept: Kept | None = None,
    resources: Resources | None = None,
    hooks: Sequence[Hook] = (),
) -> History:
    """Train a graph in place to give what `teacher` gives; see `fit` for what is raised.

    Both have the same inputs and outputs. A softmax at the end of both is left out while they
    train; where only one has it there, the logarithms of probabilities are compared. `kept` tells
    of tensors of the graph which part of the teacher's they are, so that they can be hints. Raises
    ModelError if there are no such tensors although hints were asked for.
    """
    lesson = lesson or Lesson()
    topics = _topics(graph, teacher, lesson, kept or {})
    student, view = topics.shown(graph), topics.shown(teacher)
    made, aims = (sample_outputs(each, dataset, _SAMPLE) for each in (student, view))
    objective = Distillation(topics.heads(made, aims), lesson.temperature)
    if all(head.kind == "none" for head in objective.heads):
        raise ModelError(
            "distill: no output of the network is a float tensor, so there is no gradient to "
            "follow; name a teacher and a student that give scores or values"
        )
    history = fit(student, dataset, objective, plan, teacher=view, resources=resources, hooks=hooks)
    adopt_weights(graph, student, history.changed)
    return history


@dataclass(frozen=True)
class _Topics:
    """The tensors that are taught: outputs, hints and maps."""

    lesson: Lesson
    outputs: list[str]
    bare: frozenset[str]
    """Outputs that are taken before their softmax."""
    values: frozenset[str]
    """Outputs that are values whatever their shape."""
    hints: list[str]
    maps: list[str]
    kept: Kept

    def shown(self, graph: Graph) -> Graph:
        """A view of a graph that returns them all."""
        outputs = (
            before_softmax(graph, name) if name in self.bare else name for name in self.outputs
        )
        return graph.with_outputs([*outputs, *self.hints, *self.maps])

    def heads(self, made: Outputs, aims: Outputs) -> tuple[Head, ...]:
        """How each is compared, by what both networks gave for some rows."""
        found = []
        for name, output, aim in zip(self.outputs, made, aims, strict=False):
            loss = self.lesson.loss
            if loss == "auto" and name in self.values:
                loss = "mse"
            found.append(_head(name, output, aim, loss))
        for name, aim in zip(self.hints, aims[len(self.outputs) :], strict=False):
            left = self.kept.get(name, {}).items()
            part = Head("mse", kept=tuple((axis, tuple(map(int, each))) for axis, each in left))
            weight = self.lesson.hints / len(self.hints)
            found.append(replace(part, weight=weight, spread=_spread(part.aim(aim))))
        found += [Head("attention", self.lesson.attention / len(self.maps)) for _ in self.maps]
        return tuple(found)


def _topics(graph: Graph, teacher: Graph, lesson: Lesson, kept: Kept) -> _Topics:
    """Choose what is taught. Raises ModelError if that is nothing."""
    hints = hint_tensors(graph, teacher, kept) if lesson.hints else []
    maps = map_tensors(graph, teacher) if lesson.attention else []
    for name, weight, found in (
        ("hints", lesson.hints, hints),
        ("attention", lesson.attention, maps),
    ):
        if weight and not found:
            raise ModelError(
                f"distill: {name} needs {'maps' if found is maps else 'tensors'} inside that both "
                f"networks have under one name, and there are none; train with {name}=0"
            )
    outputs = _taught_outputs(graph, teacher)
    pair = graph, teacher
    bare = [name for name in outputs if all(before_softmax(g, name) != name for g in pair)]
    values = [name for name in outputs if _is_bounded(teacher, name)]
    return _Topics(lesson, outputs, frozenset(bare), frozenset(values), hints, maps, kept)


def _is_bounded(graph: Graph, name: str) -> bool:
    maker = graph.producer(name)
    return maker is not None and is_op(maker, *_BOUNDED)


def _taught_outputs(graph: Graph, teacher: Graph) -> list[str]:
    """The outputs that nodes of both graphs compute. Raises ModelError if there are none."""
    names = [
        name
        for name in graph.outputs
        if name in teacher and graph.producer(name) and teacher.producer(name)
    ]
    if not names:
        raise ModelError(
            f"distill: the teacher gives {', '.join(map(repr, teacher.outputs))}, the network "
            f"{', '.join(map(repr, graph.outputs))}; they must have outputs of the same names"
        )
    return names


def _head(name: str, made: torch.Tensor, aim: torch.Tensor, loss: str) -> Head:
    if made.shape != aim.shape:
        raise ModelError(
            f"distill: output {name!r} has shape {tuple(made.shape)}, the teacher's "
            f"{tuple(aim.shape)}; they must be alike"
        )
    if not made.is_floating_point():
        return Head("none")
    if is_scores(made) and loss != "mse":
        return Head("kl", shares=_are_shares(aim))
    return Head("mse", spread=_spread(aim))


def _are_shares(aim: torch.Tensor) -> bool:
    """Whether each row is a distribution over classes."""
    sums = aim.double().flatten(1).sum(1)
    return bool((aim >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))


def _spread(aim: torch.Tensor) -> float:
    """The variance of a tensor; 1 if it has none."""
    spread = float(aim.double().var(correction=0)) if aim.numel() else 0.0
    return spread if spread > 0 else 1.0


def hint_tensors(graph: Graph, teacher: Graph, kept: Kept) -> list[str]:
    """Tensors that both compute under one name, as a whole or in part: the last of each shape."""
    found: dict[object, str] = {}
    for name, own, other in _shared_tensors(graph, teacher):
        left = [
            len(kept[name][axis]) if axis in kept.get(name, {}) else size
            for axis, size in enumerate(other, 1)
        ]
        if list(own) == left:
            found[other] = name
    return list(found.values())


def map_tensors(graph: Graph, teacher: Graph) -> list[str]:
    """Maps that both compute under one name, whatever their channels: the last of each size."""
    found: dict[object, str] = {}
    for name, own, other in _shared_tensors(graph, teacher):
        if len(own) == len(other) == 3 and own[1:] == other[1:] and own[1:] != (1, 1):
            found[own[1:]] = name
    return list(found.values())


def _shared_tensors(graph: Graph, teacher: Graph) -> Iterator[tuple[str, Shape, Shape]]:
    for name in (tensor.name for node in graph.nodes for tensor in node.outputs):
        own, other = _inner_shape(graph, name), _inner_shape(teacher, name)
        if own is not None and other is not None:
            yield name, own, other


def _inner_shape(graph: Graph, name: str) -> Shape | None:
    """The shape of one row of a float tensor that is computed, no output, and known."""
    if name not in graph or graph.producer(name) is None or graph.is_output(name):
        return None
    shape, dtype = graph.shape(name), graph.dtype(name)
    known = shape is not None and dtype is not None and dtype.kind == "f" and len(shape) > 1
    return shape[1:] if known and shape is not None else None
