"""Sizes of tensors for coupling: open dimensions stand for themselves as large primes.

Where a model leaves its batch (or sequence) open, a second view of it is made in which each open
size is a prime that divides no size of the model. Shape arithmetic then folds, a Reshape that
merges the batch into another axis is followed like any other, and what depends on an open size
is recognised by being divisible by its prime.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.cost import Role, bind, dim_key, open_dims
from graphopt.ir import Array, Dims, Graph, Known, integer_values
from graphopt.ir.shapes import infer_model

__all__ = ["Sizes"]

_PRIMES = (127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211)
_SHAPING = frozenset({"Expand", "Reshape", "Shape", "Tile", "View"})


class Sizes:
    """What is known of the sizes and the constants of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._view = graph
        self._shapes: Mapping[str, Dims] | None = None
        self._open: tuple[int, ...] = ()
        self._integers: dict[str, Known] | None = None
        self.doubtful = False
        if any(node.op in _SHAPING for node in graph.nodes):
            self._bind()

    def _bind(self) -> None:
        dims = [dim for dim in open_dims(self.graph) if dim.role is not Role.SPATIAL]
        self.doubtful = len(dims) != len(open_dims(self.graph))
        if not dims:
            return
        used = set(chain.from_iterable(a.shape for a in self.graph.constants().values()))
        primes = [p for p in _PRIMES if not any(size % p == 0 for size in used if size)]
        chosen = dict(zip((dim.key for dim in dims), primes, strict=False))
        self._open = tuple(chosen.values())
        self._shapes = self._infer(chosen)
        if self._shapes is None:
            self._view = bind(self.graph, chosen)

    def _infer(self, chosen: Mapping[str, int]) -> Mapping[str, Dims] | None:
        """What ONNX alone finds with the open sizes filled in; None if that leaves any open."""
        if not all(self._harmless(node) for node in self.graph.nodes if node.op == "Shape"):
            return None
        model = onnx.ModelProto.FromString(self.graph.skeleton(inline_bytes=1024)[0])
        for value in model.graph.input:
            for axis, size in enumerate(self.graph.shape(value.name) or ()):
                bound = (
                    None if isinstance(size, int) else chosen.get(dim_key(value.name, axis, size))
                )
                if bound is not None:
                    value.type.tensor_type.shape.dim[axis].dim_value = bound
        shapes = {name: info.shape for name, info in infer_model(model).items()}
        made = [tensor.name for node in self.graph.nodes for tensor in node.outputs if tensor.name]
        found = {name: shape for name, shape in shapes.items() if shape is not None}
        whole = all(isinstance(size, int) for shape in found.values() for size in shape)
        return found if whole and found.keys() >= set(made) else None

    def _harmless(self, node: gs.Node) -> bool:
        """Whether a Shape gives open sizes only, or its readers pick single elements."""
        shape = self.graph.shape(node.inputs[0].name) or ()
        picked = shape[int(node.attrs.get("start", 0)) : node.attrs.get("end", len(shape))]
        readers = self.graph.consumers(node.outputs[0].name)
        open_only = bool(picked) and not any(isinstance(size, int) for size in picked)
        return open_only or all(reader.op == "Gather" for reader in readers)

    @property
    def opset(self) -> int:
        return self.graph.opset

    def readers(self, name: str) -> list[gs.Node]:
        """The nodes that read a tensor once everything known before the model runs is folded."""
        return self._view.consumers(name) if name in self._view else []

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The sizes of a tensor; None for an open one."""
        if self._shapes is not None and name in self._shapes:
            shape: Dims | None = self._shapes[name]
        else:
            shape = self._view.shape(name) if name in self._view else None
        if shape is None and self._view is not self.graph:
            shape = self.graph.shape(name)
        if shape is None:
            return None
        return tuple(size if isinstance(size, int) else None for size in shape)

    def constant(self, name: str) -> Array | None:
        """The value of a tensor that is known before the model runs."""
        value = self.graph.constant(name)
        if value is None and self._view is not self.graph and name in self._view:
            value = self._view.constant(name)
        return value

    def literal(self, name: str) -> bool:
        return self.graph.constant(name) is not None

    def is_open(self, size: int | None) -> bool:
        """Whether a size depends on one that the model leaves open."""
        return size is None or any(size and size % prime == 0 for prime in self._open)

    def target(self, name: str) -> list[int | None] | None:
        """The elements of a shape tensor, None for each that is computed; None if not even that."""
        value = self.graph.constant(name)
        if value is not None:
            return [int(element) for element in np.asarray(value).reshape(-1)]
        value = self.constant(name)
        if value is None:
            if self._integers is None:
                self._integers = integer_values(self.graph)
            known = self._integers.get(name)
            if known is None:
                return None
            return [entry if isinstance(entry, int) else None for entry in known.reshape(-1)]
        elements = [int(element) for element in np.asarray(value).reshape(-1)]
        if self.doubtful:
            return None
        return [None if self.is_open(element) else element for element in elements]
