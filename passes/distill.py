"""Train a network to do what the original does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt import train
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.refit import noted_traces
from graphopt.train import Lesson, Plan

__all__ = ["Distill"]


@dataclass(frozen=True)
class Distill(Plan, Lesson, Pass):
    """Train the network to do what the original does; no labels are needed.

    Class scores are compared by the divergence of their softmax at `temperature` (or `loss` mse),
    all other outputs by their squared error over the original's variance. `hints` and `attention`
    weigh tensors inside that both networks still have under one name.

    Training ends after `epochs` or `minutes`, whichever is first (without both: 10 epochs); the
    learning rate gets to its end within that. Images are varied as `augment` says: auto, or some
    of flip, crop, cutout, mixup. A part `holdout` of the rows is not trained on, and the weights
    that do best on it are kept. Precision and memory layout are what is fastest here, unless
    given. A run with a work directory that was killed goes on from its last checkpoint.
    """

    name: ClassVar[str] = "distill"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING})

    def __post_init__(self) -> None:
        Plan.__post_init__(self)
        Lesson.__post_init__(self)

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        history = train.distill(
            graph,
            context.original,
            inputs,
            self,
            self,
            kept=noted_traces(graph),
            resources=context.resources(),
        )
        context.notes.update(history.as_notes())
        if history.stopped is not None:
            context.notes["unmet"] = [history.stopped]
