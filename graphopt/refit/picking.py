"""Pick which channels of a family stay at the layer that reads it, just before that is solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.coupling import couple, remove
from graphopt.ir import Graph
from graphopt.refit.frontier import Frontier
from graphopt.refit.solving import Moments, Reader, eliminate
from graphopt.refit.tracing import traces_of

__all__ = ["Choice", "pick"]


@dataclass(frozen=True, eq=False)
class Choice:
    """A family that one layer alone reads, and how many of its channels are to stay.

    The layer reads it in the tensor `data`. `columns` are those of the layer's matrix, channel by
    channel, then those of others.
    """

    family: str
    data: str
    size: int
    width: int
    columns: npt.NDArray[np.int64]
    per_channel: int
    order: Callable[[Reader], list[int] | None]
    """Which channels go first, where a criterion says so."""


def pick(
    frontier: Frontier, choice: Choice, moments: Moments, damping: float
) -> tuple[list[int], npt.NDArray[np.int64]]:
    """Cut the family of the frontier's graph; the channels and the columns that stay."""
    graph: Graph = frontier.graph
    reader = Reader(moments.taking(choice.columns), choice.per_channel)
    order = choice.order(reader)
    gone, _ = eliminate([reader], choice.size, damping, least=choice.width, given=order)
    kept = sorted(set(range(choice.size)) - set(gone))
    stays = np.ones(len(choice.columns), np.bool_)
    own = stays[: choice.size * choice.per_channel].reshape(choice.size, choice.per_channel)
    own[gone] = False
    coupling = couple(graph)
    plan = {choice.family: kept}
    frontier.forget(traces_of(coupling, plan))
    remove(graph, coupling, plan)
    return kept, np.sort(choice.columns[stays])
