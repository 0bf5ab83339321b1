"""Train a network to be as good as it was, with what the data have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt import train
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.train import Plan

__all__ = ["Recover"]


@dataclass(frozen=True)
class Recover(Plan, Pass):
    """Train the network to be as good as it was: with labels if the data have any, else distilled.

    This is `finetune` with cross-entropy, or `distill` with its defaults, for recipes that do not
    know which data they will meet.
    """

    name: ClassVar[str] = "recover"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING})

    def run(self, graph: Graph, context: Context) -> None:
        data = context.inputs(self)
        history = train.recover(graph, context.original, data, self, resources=context.resources())
        context.notes["labels"] = data.labels is not None
        context.trained(history)
