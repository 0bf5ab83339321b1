"""How many bytes folding may add to a model: those of the constants that go, and a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from graphopt.ir import Graph, is_uniform

__all__ = ["Ledger", "size_bytes"]

_LARGE_BYTES = 4096
"""Smaller constants are no matter where limits are concerned."""


def size_bytes(graph: Graph, name: str) -> int:
    """Bytes of a tensor, 0 where its shape is not known before it is computed."""
    shape, dtype = graph.shape(name), graph.dtype(name)
    sizes = [dim for dim in shape or () if isinstance(dim, int)]
    if shape is None or dtype is None or len(sizes) < len(shape):
        return 0
    return math.prod(sizes) * dtype.itemsize


class Ledger:
    """Bytes that results may take: each constant that goes with its last reader is spent once."""

    def __init__(self, graph: Graph, cone: Sequence[gs.Node], limit_bytes: int) -> None:
        """Account for `cone`, nodes that depend on constants alone, in topological order."""
        self._graph, self._limit = graph, limit_bytes
        inside = {id(node) for node in cone}
        self._credit: dict[str, int] = {}
        self._roots: dict[str, frozenset[str]] = {}
        for node in cone:
            roots: frozenset[str] = frozenset()
            for tensor in node.inputs:
                roots |= self._roots.get(tensor.name, frozenset())
                value = graph.constant(tensor.name) if tensor.name else None
                if value is None or value.nbytes < _LARGE_BYTES or is_uniform(value):
                    continue
                if all(id(reader) in inside for reader in graph.consumers(tensor.name)):
                    roots |= {tensor.name}
                    self._credit[tensor.name] = value.nbytes
            self._roots.update({tensor.name: roots for tensor in node.outputs})

    def affords(self, name: str) -> bool:
        """Whether a result may be stored; if so, its bytes are spent."""
        left = size_bytes(self._graph, name)
        spent = {}
        for root in sorted(self._roots[name]):
            spent[root] = min(left, self._credit[root])
            left -= spent[root]
        if left > self._limit:
            return False
        for root, size in spent.items():
            self._credit[root] -= size
        return True
