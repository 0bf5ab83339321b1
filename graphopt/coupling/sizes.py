"""Sizes of tensors for coupling: open dimensions stand for themselves as large primes.

Where a model leaves its batch (or sequence) open, a second view of it is made in which each open
size is a prime that divides no size of the model. Shape arithmetic then folds, a Reshape that
merges the batch into another axis is followed like any other, and what depends on an open size
is recognised by being divisible by its prime.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.cost import Role, bind, open_dims
from graphopt.ir import Array, Graph, Known, integer_values
from graphopt.ir.normalise import normalise

__all__ = ["Sizes"]

_PRIMES = (127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211)
_SHAPING = frozenset({"Expand", "Reshape", "Shape", "Tile", "View"})


class Sizes:
    """What is known of the sizes and the constants of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._view = graph
        self._open: tuple[int, ...] = ()
        self._integers: dict[str, Known] | None = None
        self.doubtful = False
        if any(node.op in _SHAPING for node in graph.nodes):
            self._bind()

    def _bind(self) -> None:
        dims = [dim for dim in open_dims(self._graph) if dim.role is not Role.SPATIAL]
        self.doubtful = len(dims) != len(open_dims(self._graph))
        if not dims:
            return
        used = set(chain.from_iterable(a.shape for a in self._graph.constants().values()))
        primes = [p for p in _PRIMES if not any(size % p == 0 for size in used if size)]
        chosen = dict(zip((dim.key for dim in dims), primes, strict=False))
        self._open = tuple(chosen.values())
        self._view = bind(self._graph, chosen)
        normalise(self._view)

    @property
    def opset(self) -> int:
        return self._graph.opset

    def readers(self, name: str) -> list[gs.Node]:
        """The nodes that read a tensor once everything known before the model runs is folded."""
        return self._view.consumers(name) if name in self._view else []

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The sizes of a tensor; None for an open one."""
        shape = self._view.shape(name) if name in self._view else None
        if shape is None and self._view is not self._graph:
            shape = self._graph.shape(name)
        if shape is None:
            return None
        return tuple(size if isinstance(size, int) else None for size in shape)

    def constant(self, name: str) -> Array | None:
        """The value of a tensor that is known before the model runs."""
        value = self._graph.constant(name)
        if value is None and self._view is not self._graph and name in self._view:
            value = self._view.constant(name)
        return value

    def literal(self, name: str) -> bool:
        return self._graph.constant(name) is not None

    def is_open(self, size: int | None) -> bool:
        """Whether a size depends on one that the model leaves open."""
        return size is None or any(size and size % prime == 0 for prime in self._open)

    def target(self, name: str) -> list[int | None] | None:
        """The elements of a shape tensor, None for each that is computed; None if not even that."""
        value = self._graph.constant(name)
        if value is not None:
            return [int(element) for element in np.asarray(value).reshape(-1)]
        value = self.constant(name)
        if value is None:
            if self._integers is None:
                self._integers = integer_values(self._graph)
            known = self._integers.get(name)
            if known is None:
                return None
            return [entry if isinstance(entry, int) else None for entry in known.reshape(-1)]
        elements = [int(element) for element in np.asarray(value).reshape(-1)]
        if self.doubtful:
            return None
        return [None if self.is_open(element) else element for element in elements]
