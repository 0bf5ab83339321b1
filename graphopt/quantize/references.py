"""What a rescaled tensor is in the original network: a note in the model, and how to read it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.ir import Array, Graph

__all__ = ["Reference", "noted_references", "write_references"]

_KEY = "graphopt.rescaled"


@dataclass(frozen=True, eq=False)
class Reference:
    """A tensor is the original's `tensor`, divided along each of these axes by these numbers."""

    tensor: str
    divisors: Mapping[int, npt.NDArray[np.float32]]

    def of(self, original: Array) -> npt.NDArray[np.float32]:
        """What the original's value is here."""
        value = original.astype(np.float32)
        for axis, divisor in self.divisors.items():
            shape = [-1 if place == axis else 1 for place in range(value.ndim)]
            value = value / divisor.reshape(shape)
        return value


def write_references(graph: Graph, references: Mapping[str, Reference]) -> None:
    """Note what tensors were before they were rescaled and renamed, on top of earlier notes."""
    earlier = noted_references(graph)
    merged = dict(earlier)
    for name, reference in references.items():
        known = earlier.get(reference.tensor)
        merged[name] = reference if known is None else _after(known, reference)
    document = {
        name: [entry.tensor, {str(axis): _packed(d) for axis, d in entry.divisors.items()}]
        for name, entry in merged.items()
        if name in graph
    }
    graph.set_metadata(_KEY, json.dumps(document, separators=(",", ":")) if document else None)


def _after(first: Reference, second: Reference) -> Reference:
    divisors = dict(first.divisors)
    for axis, divisor in second.divisors.items():
        divisors[axis] = divisors[axis] * divisor if axis in divisors else divisor
    return Reference(first.tensor, divisors)


def noted_references(graph: Graph) -> dict[str, Reference]:
    """The references of tensors that are still there."""
    document = json.loads(graph.metadata.get(_KEY, "{}"))
    return {
        name: Reference(tensor, {int(axis): _unpacked(text) for axis, text in divisors.items()})
        for name, (tensor, divisors) in document.items()
        if name in graph
    }


def _packed(values: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _unpacked(text: str) -> npt.NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
