"""Train a network while its least filters are zero now and then, until they stay so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphopt import train
from graphopt.coupling import couple, prepare
from graphopt.coupling.naming import matching_families
from graphopt.errors import BudgetError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.train import Guided

__all__ = ["SoftPrune"]


@dataclass(frozen=True)
class SoftPrune(Guided, Pass):
    """Train the network, after every epoch zero the least filters, and let them grow again.

    So a wrong choice can be mended (He et al. 2018; with geometric-median He et al. 2019). The
    fraction `ratio` of each family's filters is zeroed: those of least `importance` (l1, l2) or
    those nearest to all others (geometric-median), of `families` if patterns of names are given.
    At the end all that goes with the chosen channels is zero, the weights that read them too, and
    `remove-channels` with the same ratio, align and families and the importance l1 removes just
    these: outputs are equal.

    The network learns what `learn` says, labels if there are any. Filters grow
    again through BatchNormalization; where it is folded, `restore-batch-norm` comes first.
    The last weights are kept.
    """

    name: ClassVar[str] = "soft-prune"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING})
    holdout: float = 0.0
    ratio: float = 0.4
    importance: Literal["geometric-median", "l1", "l2"] = "geometric-median"
    align: int = 1
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.ratio < 1.0:
            raise RecipeError(f"{self.name}: ratio must be between 0 and 1, got {self.ratio}")
        if self.align < 1:
            raise RecipeError(f"{self.name}: align must be at least 1, got {self.align}")
        if self.holdout:
            raise RecipeError(
                f"{self.name}: holdout must be 0, got {self.holdout}: the last weights are those "
                f"whose filters are zero"
            )

    def required(self) -> frozenset[Need]:
        return self.needs | ({Need.LABELS} if self.learn == "labels" else set())

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        prepare(graph)
        coupling = couple(graph)
        if not coupling.families:
            raise BudgetError(f"{self.name}: no channel can be removed; inspect says why")
        families = matching_families(coupling, self.families, self.name)
        zeros = train.SoftZeros(self.ratio, self.importance, self.align, coupling, families)
        history = train.recover(
            graph,
            context.original,
            inputs,
            self,
            resources=context.resources(),
            hooks=[zeros],
        )
        context.trained(history)
        gone: dict[str, Note] = {name: channels.tolist() for name, channels in zeros.gone.items()}
        context.notes["zero"] = gone
