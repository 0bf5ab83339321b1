"""Train a network further, with labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from graphopt import train
from graphopt.data import is_function_name
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.train import Plan

__all__ = ["Finetune"]


@dataclass(frozen=True)
class Finetune(Plan, Pass):
    """Train the network further with the labels of the data.

    `loss` is cross-entropy (with `label_smoothing`), mse, or `file.py:function`, which is called
    with a list of the outputs and the labels, all torch tensors, and returns a scalar one.
    """

    name: ClassVar[str] = "finetune"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING, Need.LABELS})
    loss: str = "cross-entropy"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise RecipeError(
                f"{self.name}: label_smoothing must be at least 0 and below 1, got "
                f"{self.label_smoothing}"
            )
        if self.loss not in train.LOSSES and not is_function_name(self.loss):
            raise RecipeError(
                f"{self.name}: loss must be {', '.join(train.LOSSES)} or file.py:function, got "
                f"{self.loss!r}"
            )

    def functions(self) -> Mapping[str, str]:
        return {"loss": self.loss} if is_function_name(self.loss) else {}

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        objective = train.objective_of(self.loss, self.label_smoothing)
        history = train.finetune(graph, inputs, objective, self, resources=context.resources())
        context.trained(history)
