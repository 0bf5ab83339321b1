"""Merge nodes that compute the same, and constants that are the same."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, bodies, is_uniform
from graphopt.passbase import Context, Pass, Promise

__all__ = ["MergeDuplicates"]

_COMPARED_BYTES = 4096
"""Inputs up to this size are the same if they hold the same, larger ones if they are the same."""

_SAMPLES = 64

_RANDOM = frozenset(
    {
        *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)


@dataclass(frozen=True)
class MergeDuplicates(Pass):
    """Compute once what is computed twice, and store once what is stored twice.

    Two nodes are the same if operator, attributes and inputs are; not random operators, If, Loop
    and Scan, or operators outside the standard, which may have side effects. Two constants are
    the same bit by bit; those over `above_bytes` are merged. Smaller ones are equal by chance, and
    sharing them would tie layers that are still to be cut.
    """

    name: ClassVar[str] = "merge-duplicates"
    promise: ClassVar[Promise] = Promise.EXACT

    above_bytes: int = 4096

    def run(self, graph: Graph, context: Context) -> None:
        constants = _merge_constants(graph, self.above_bytes)
        nodes = _merge_nodes(graph)
        context.notes["applied"] = {"constants": constants, "nodes": nodes}


def _merge_constants(graph: Graph, above_bytes: int) -> int:
    """Let readers of equal constants read the first of them."""
    groups: dict[Hashable, list[str]] = {}
    for name, array in sorted(graph.constants().items()):
        if array.nbytes > above_bytes and array.dtype.kind != "O" and not is_uniform(array):
            groups.setdefault((array.shape, array.dtype, _sample(array)), []).append(name)
    merged = 0
    for names in groups.values():
        for place, name in enumerate(names):
            earlier = (other for other in names[:place] if _equal(graph, other, name))
            same = next(earlier, None)
            if same is not None and graph.can_replace(name, same):
                graph.apply(Edit(replace={name: same}))
                merged += 1
    graph.prune()
    return merged


def _flat(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1)


def _sample(array: Array) -> bytes:
    """A few elements from all over an array: cheap to take, and mostly enough to tell it apart."""
    flat = _flat(array)
    return flat[:: max(1, flat.size // _SAMPLES)].tobytes()


def _equal(graph: Graph, one: str, other: str) -> bool:
    left, right = graph.constant(one), graph.constant(other)
    if left is None or right is None:
        return False
    return left is right or bool((_flat(left).view(np.uint8) == _flat(right).view(np.uint8)).all())


def _merge_nodes(graph: Graph) -> int:
    """Let readers of a node that comes again, in the same scope, read the first one."""
    first: dict[Hashable, gs.Node] = {}
    merged = 0
    for node in list(graph.all_nodes()):
        if node.domain not in (None, "", "ai.onnx") or node.op in _RANDOM or any(bodies(node)):
            continue
        same = first.setdefault((id(graph.scope_of(node)), *_signature(graph, node)), node)
        if same is node:
            continue
        pairs = [(b.name, a.name) for a, b in zip(same.outputs, node.outputs, strict=True)]
        replace = {old: new for old, new in pairs if old}
        if all(graph.can_replace(old, new) for old, new in replace.items()):
            graph.apply(Edit(remove=(node,), replace=replace))
            merged += 1
    return merged


def _signature(graph: Graph, node: gs.Node) -> Iterator[Hashable]:
    """What determines a node's results; small constants count by value."""
    yield node.op
    yield tuple(bool(tensor.name) for tensor in node.outputs)
    for tensor in node.inputs:
        value = graph.constant(tensor.name) if tensor.name else None
        small = value is not None and value.nbytes <= _COMPARED_BYTES and value.dtype.kind != "O"
        yield _frozen(value) if small else tensor.name
    for key, value in sorted(node.attrs.items()):
        yield key, _frozen(value)


def _frozen(value: object) -> Hashable:
    """A hashable stand-in for an attribute's value or a small constant."""
    if isinstance(value, gs.Constant):
        value = value.values
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, _flat(value).tobytes()
    return tuple(value) if isinstance(value, list) else str(value)
