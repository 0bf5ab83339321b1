"""Train a graph to do what a teacher does; no labels are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from graphopt.data import Dataset
from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.train.batches import Batch, Outputs
from graphopt.train.engine import fit
from graphopt.train.history import History
from graphopt.train.hooks import Hook
from graphopt.train.plan import Lesson, Plan, Resources
from graphopt.train.viewing import adopt_weights, before_softmax, is_scores, sample_outputs

__all__ = ["Distillation", "Head", "attention_map", "distill", "divergence", "shared_tensors"]

_SAMPLE = 64
"""Rows whose outputs show what kinds they are of, and how far they spread."""


@dataclass(frozen=True)
class Head:
    """How one tensor of the student is compared with the teacher's, and how much that counts."""

    kind: Literal["kl", "mse", "attention", "none"]
    weight: float = 1.0
    spread: float = 1.0
    """The variance that squared errors are divided by."""


@dataclass(frozen=True)
class Distillation:
    """The distance of a student's outputs from what it was taught: one head for each."""

    heads: tuple[Head, ...]
    temperature: float

    def __call__(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        losses = [
            head.weight * self._distance(head, output, aim)
            for head, output, aim in zip(self.heads, outputs, batch.taught, strict=True)
            if head.kind != "none"
        ]
        return torch.stack(losses).sum()

    def _distance(self, head: Head, output: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
        if head.kind == "kl":
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
    resources: Resources | None = None,
    hooks: Sequence[Hook] = (),
) -> History:
    """Train a graph in place to give what `teacher` gives; see `fit` for what is raised.

    Both have the same inputs and outputs. A softmax at their end is left out while they train.
    """
    lesson = lesson or Lesson()
    names = _taught_outputs(graph, teacher)
    hints = shared_tensors(graph, teacher, same_channels=True) if lesson.hints else []
    maps = shared_tensors(graph, teacher, same_channels=False) if lesson.attention else []
    student, view = (
        each.with_outputs([*(before_softmax(each, name) for name in names), *hints, *maps])
        for each in (graph, teacher)
    )
    made, aims = (sample_outputs(each, dataset, _SAMPLE) for each in (student, view))
    heads = [
        _head(name, output, aim, lesson)
        for name, output, aim in zip(names, made, aims, strict=False)
    ]
    spreads = [_spread(aim) for aim in aims[len(names) :]]
    heads += [Head("mse", lesson.hints / len(hints), spread) for spread in spreads[: len(hints)]]
    heads += [Head("attention", lesson.attention / len(maps)) for _ in maps]
    if all(head.kind == "none" for head in heads):
        raise ModelError(
            "distill: no output of the network is a float tensor, so there is no gradient to "
            "follow; name a teacher and a student that give scores or values"
        )
    objective = Distillation(tuple(heads), lesson.temperature)
    history = fit(student, dataset, objective, plan, teacher=view, resources=resources, hooks=hooks)
    adopt_weights(graph, student, history.changed)
    return history


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


def _head(name: str, made: torch.Tensor, aim: torch.Tensor, lesson: Lesson) -> Head:
    if made.shape != aim.shape:
        raise ModelError(
            f"distill: output {name!r} has shape {tuple(made.shape)}, the teacher's "
            f"{tuple(aim.shape)}; they must be alike"
        )
    if not made.is_floating_point():
        return Head("none")
    if is_scores(made) and lesson.loss != "mse":
        return Head("kl")
    return Head("mse", spread=_spread(aim))


def _spread(aim: torch.Tensor) -> float:
    """The variance of a tensor; 1 if it has none."""
    spread = float(aim.double().var(correction=0)) if aim.numel() else 0.0
    return spread if spread > 0 else 1.0


def shared_tensors(graph: Graph, teacher: Graph, *, same_channels: bool) -> list[str]:
    """Tensors inside that both graphs compute under one name: the last of each shape.

    With `same_channels` false, the last maps of each size in space, whatever their channels.
    """
    found: dict[object, str] = {}
    for node in graph.nodes:
        for tensor in node.outputs:
            own = _inner_shape(graph, tensor.name)
            other = _inner_shape(teacher, tensor.name)
            if own is None or other is None or len(own) != len(other):
                continue
            if same_channels and own == other:
                found[own] = tensor.name
            if not same_channels and len(own) == 3 and own[1:] == other[1:] and own[1:] != (1, 1):
                found[own[1:]] = tensor.name
    return list(found.values())


def _inner_shape(graph: Graph, name: str) -> tuple[int | str | None, ...] | None:
    """The shape of one row of a float tensor that is computed, no output, and known."""
    if name not in graph or graph.producer(name) is None or graph.is_output(name):
        return None
    shape, dtype = graph.shape(name), graph.dtype(name)
    known = shape is not None and dtype is not None and dtype.kind == "f" and len(shape) > 1
    return shape[1:] if known and shape is not None else None
