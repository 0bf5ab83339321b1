"""Remove channels that are constant, or that nothing reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.coupling import absorb_constants, prepare
from graphopt.coupling.unread import remove_unread
from graphopt.ir import Graph
from graphopt.passbase import Context, Note, Pass, Promise

__all__ = ["RemoveDeadChannels"]

_MOST_ROUNDS = 32


@dataclass(frozen=True)
class RemoveDeadChannels(Pass):
    """Remove channels that are constant, or that nothing reads: outputs stay equal.

    Pruned weights leave them: a neuron without inputs gives a constant, which goes into the biases
    behind it; one whose weights behind it are all zero is not read. One that goes may leave more,
    so this is repeated until nothing is found.
    """

    name: ClassVar[str] = "remove-dead-channels"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        prepare(graph)
        refused: dict[str, Note] = {}
        for _ in range(_MOST_ROUNDS):
            absorbed = absorb_constants(graph)
            refused.update(absorbed.refused)
            if not absorbed.removed and not remove_unread(graph):
                break
        context.notes["refused"] = refused
