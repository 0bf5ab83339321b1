"""Train a network to be as good as it was, with what the data have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt import train
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.train import Guided

__all__ = ["Recover"]


@dataclass(frozen=True)
class Recover(Guided, Pass):
    """Train the network to be as good as it was, for recipes that do not know their data.

    This is `finetune` with cross-entropy where the data have labels, else `distill` with its
    defaults, unless `learn` says which.
    """

    name: ClassVar[str] = "recover"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING})

    def required(self) -> frozenset[Need]:
        return self.needs | ({Need.LABELS} if self.learn == "labels" else set())

    def run(self, graph: Graph, context: Context) -> None:
        data = context.inputs(self)
        history = train.recover(graph, context.original, data, self, resources=context.resources())
        context.trained(history)
