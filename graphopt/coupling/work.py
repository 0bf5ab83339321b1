"""How much work or memory is left after a cut, without making it.

Multiply-accumulates and bytes are sums of products: each node's, or each weight's, is in
proportion to the kept part of every axis that it runs over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from graphopt.cost import cost, node_macs
from graphopt.cost.parameters import parameter_names, size_bytes
from graphopt.coupling.axes import Atoms, Axis, Fixed
from graphopt.coupling.costs import work_axes
from graphopt.coupling.families import Coupling
from graphopt.coupling.removal import Plan
from graphopt.errors import BudgetError

__all__ = ["Work", "bytes_of", "macs_of"]


class Work:
    """A total that shrinks with the widths of families."""

    def __init__(
        self, coupling: Coupling, amounts: Iterable[tuple[float, tuple[Axis, ...]]]
    ) -> None:
        self._coupling = coupling
        self._fixed = 0.0
        self._terms: list[tuple[float, list[Atoms]]] = []
        solution = coupling.solution
        for amount, axes in amounts:
            components = [
                solution.component[axis]
                for axis in axes
                if not isinstance(axis, Fixed) and len(axis)
            ]
            loose = [found for found in components if not solution.pinned[found].all()]
            if loose:
                self._terms.append((amount, loose))
            else:
                self._fixed += amount
        self.total = self._fixed + sum(amount for amount, _ in self._terms)

    def left(self, plan: Plan) -> float:
        """The fraction that is left if only the channels in a plan stay."""
        keep = np.ones(len(self._coupling.solution.pinned), np.bool_)
        for name, kept in plan.items():
            components = self._coupling.family(name).components
            keep[components] = False
            keep[components[np.asarray(kept)]] = True
        if not self.total:
            return 1.0
        return (self._fixed + sum(self._term(term, keep) for term in self._terms)) / self.total

    def _term(self, term: tuple[float, list[Atoms]], keep: npt.NDArray[np.bool_]) -> float:
        amount, axes = term
        return amount * math.prod(
            np.count_nonzero(keep[components]) / len(components) for components in axes
        )


def macs_of(coupling: Coupling) -> Work:
    """The multiply-accumulates of all nodes of the main scope.

    Raises BudgetError if none of them could be counted.
    """
    costs: Mapping[str, int] = node_macs(coupling.graph)
    amounts = []
    for node in coupling.graph.nodes:
        name = next((tensor.name for tensor in node.outputs if tensor.name), node.name)
        if costs.get(name):
            amounts.append((float(costs[name]), tuple(work_axes(node, coupling.wiring))))
    if not amounts:
        names = ", ".join(f"{n} x{count}" for n, count in cost(coupling.graph).uncosted.items())
        raise BudgetError(
            f"macs: none can be counted, as the model leaves open what sizes {names or 'it'} "
            "works on; give a ratio or bytes, or fix the sizes of its inputs"
        )
    return Work(coupling, amounts)


def bytes_of(coupling: Coupling) -> Work:
    """The bytes of all parameters."""
    constants = coupling.graph.constants()
    return Work(
        coupling,
        (
            (float(size_bytes(constants[name])), tuple(coupling.axes(name) or ()))
            for name in parameter_names(coupling.graph)
        ),
    )
