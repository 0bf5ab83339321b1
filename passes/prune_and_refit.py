"""Prune the layers that take most energy first, and solve what is left of them anew."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.refit.sparsifying import Costs, Sparsifying, sparsify
from graphopt.sparse import choose_weights, keep_weights

__all__ = ["PruneAndRefit"]


@dataclass(frozen=True)
class PruneAndRefit(Pass):
    """Prune the layers that take most energy first, and solve what is left of them anew.

    Of every filter the part `sparsity` of its weights goes. Most of what stays are the largest;
    the part `restore` of it are those that lower the error of the layer's output most. Then least
    squares fit the filter to what the layer gave before, over `samples` calibration inputs run
    through the layers pruned by then, with a ridge of `damping` times the mean square input. Needs
    no labels and no gradients (Yang, Chen & Sze 2017).

    Energy is estimated from multiply-accumulates and accesses, which cost `product`, `buffer` and
    `memory` each, in any unit (the defaults are those of the Eyeriss chip). `weights` are patterns
    of names; with "!" they are left alone. What is zero before stays so, and later trainings keep
    zeros zero.
    """

    name: ClassVar[str] = "prune-and-refit"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    sparsity: float = 0.5
    restore: float = 0.2
    samples: int = 1024
    damping: float = 1e-4
    product: float = 1.0
    buffer: float = 6.0
    memory: float = 200.0
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise RecipeError(
                f"{self.name}: sparsity must be above 0 and below 1, got {self.sparsity}"
            )
        if not 0 <= self.restore < 1:
            raise RecipeError(
                f"{self.name}: restore must be at least 0 and below 1, got {self.restore}"
            )
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples must be at least 1, got {self.samples}")
        for key, cost in (
            ("damping", self.damping),
            ("product", self.product),
            ("buffer", self.buffer),
            ("memory", self.memory),
        ):
            if not 0 < cost < float("inf"):
                raise RecipeError(f"{self.name}: {key} must be above 0, got {cost}")

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        chosen, left_alone = choose_weights(graph, self.weights, self.name)
        reports, unsolvable = sparsify(
            graph,
            chosen,
            inputs.take(self.samples),
            Sparsifying(self.sparsity, self.restore, self.damping, context.seed, context.threads),
            Costs(self.product, self.buffer, self.memory),
            lambda part: context.progress("pruning", part),
        )
        keep_weights(graph, pruned=reports)
        context.notes["layers"] = {
            name: dict[str, Note](asdict(report)) for name, report in reports.items()
        }
        context.left_alone({**left_alone, **unsolvable})
