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
    """Train the network to do what the original does; no labels are needed."""

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
        context.trained(history)
