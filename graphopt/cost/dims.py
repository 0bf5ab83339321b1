"""The sizes that a model leaves open, and a copy of the model with them filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import onnx

from graphopt.ir import Graph
from graphopt.ir.normalise import normalise

__all__ = ["OpenDim", "Role", "bind", "dim_key", "open_dims"]


class Role(StrEnum):
    """What an open size most likely counts."""

    BATCH = "batch"
    SPATIAL = "spatial"
    SEQUENCE = "sequence"


@dataclass(frozen=True)
class OpenDim:
    """An open size: a symbol, or `input[axis]` where the model gives none."""

    key: str
    role: Role


# Exporters' habits; a symbol that says nothing is judged by its place.
_ROLE_NAMES: Mapping[Role, re.Pattern[str]] = {
    Role.BATCH: re.compile(r"batch|^(n|b|bs|bsz)$", re.IGNORECASE),
    Role.SPATIAL: re.compile(r"height|width|^(h|w|d)$", re.IGNORECASE),
    Role.SEQUENCE: re.compile(r"seq|len|time|token|frame|past|^(t|l|s)$", re.IGNORECASE),
}
_IMAGE_RANK = 4


def open_dims(graph: Graph) -> tuple[OpenDim, ...]:
    """Return every open size of the inputs, each symbol once, in the order of the inputs."""
    found: dict[str, OpenDim] = {}
    for name in graph.inputs:
        shape = graph.shape(name) or ()
        for axis, size in enumerate(shape):
            if not isinstance(size, int):
                key = dim_key(name, axis, size)
                found.setdefault(key, OpenDim(key, _role(size, axis, len(shape))))
    return tuple(found.values())


def dim_key(name: str, axis: int, size: str | None) -> str:
    """Return the name by which an open size is bound."""
    return size or f"{name}[{axis}]"


def _role(symbol: str | None, axis: int, rank: int) -> Role:
    for role, pattern in _ROLE_NAMES.items():
        if symbol and pattern.search(symbol):
            return role
    if axis == 0 and rank > 1:
        return Role.BATCH
    return Role.SPATIAL if rank >= _IMAGE_RANK else Role.SEQUENCE


def bind(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """Return a copy that shares the weights, with the inputs' open sizes set where `sizes` says.

    Shape arithmetic becomes constants where it can; all else has the names it has in `graph`.
    """
    data, arrays = graph.skeleton()
    model = onnx.ModelProto.FromString(data)
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
    for value in model.graph.input:
        for axis, size in enumerate(graph.shape(value.name) or ()):
            number = None if isinstance(size, int) else sizes.get(dim_key(value.name, axis, size))
            if number is not None:
                value.type.tensor_type.shape.dim[axis].dim_value = number
    bound = Graph(model, arrays)
    normalise(bound)  # follows the sizes through shape arithmetic
    return bound
