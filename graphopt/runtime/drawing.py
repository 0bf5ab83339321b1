"""Random arrays for a model's inputs."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from graphopt.cost import dim_key
from graphopt.errors import RuntimeUnavailable
from graphopt.ir import Dims, Graph
from graphopt.runtime.ranges import Range, input_range

__all__ = ["Draw", "Input", "draw_array", "inputs_of"]


@dataclass(frozen=True)
class Draw:
    """What is decided before random inputs are drawn.

    `sizes` gives the open dimensions by symbol (or `input[axis]`). Integers of which the graph says
    nothing lie in [0, `integers`); 1 and 0 stand for all ones and all zeros. An input of one
    element that the graph compares with constants gets one of those, or any value, in turn: `turn`
    (added to the seed) says which. `positive` floats are uniform in [0.1, 1), others standard
    normal.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    integers: int = 10
    turn: int = 0
    positive: bool = False


@dataclass(frozen=True)
class Input:
    """One input, with what the graph says of its values."""

    name: str
    dtype: np.dtype
    dims: Dims
    values: Range

    @property
    def is_integer(self) -> bool:
        return self.dtype.name.startswith(("int", "uint"))

    @property
    def is_floating(self) -> bool:
        return "float" in self.dtype.name

    @property
    def options(self) -> int:
        """How many kinds of value to take in turn: each constant it is compared with, and any."""
        single = all(size == 1 for size in self.dims)
        return len(self.values.choices) + 1 if single and self.is_integer else 1


# Bytes are pixels or quantized values, of which any will do.
_BYTES = frozenset({"int8", "uint8"})


def inputs_of(graph: Graph) -> tuple[Input, ...]:
    """Describe the inputs; raises RuntimeUnavailable for one that is not a tensor."""
    found = []
    for name in graph.inputs:
        dtype, dims = graph.dtype(name), graph.shape(name)
        if dtype is None or dims is None:
            raise RuntimeUnavailable(
                f"feeds: input {name!r} is not a tensor of known rank; give the model real data"
            )
        found.append(Input(name, dtype, dims, input_range(graph, name)))
    return tuple(found)


def draw_array(given: Input, draw: Draw, seed: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one input; an open dimension of unknown size gets 1."""
    sizes = [
        dim if isinstance(dim, int) else draw.sizes.get(dim_key(given.name, axis, dim), 1)
        for axis, dim in enumerate(given.dims)
    ]
    if given.is_integer:
        turn = (seed + draw.turn) % given.options
        if turn < given.options - 1:
            return np.full(sizes, given.values.choices[turn], given.dtype)
        low, high = _bounds(given, draw)
        return np.asarray(rng.integers(low, high, sizes)).astype(given.dtype)
    if given.dtype.kind == "b":
        return np.asarray(rng.random(sizes) < 0.5)
    if given.dtype.kind in "OUST":
        return np.asarray(rng.choice(np.array(list(string.ascii_lowercase), object), sizes))
    values = rng.uniform(0.1, 1, sizes) if draw.positive else rng.standard_normal(sizes)
    return np.asarray(values).astype(given.dtype)


def _bounds(given: Input, draw: Draw) -> tuple[int, int]:
    info = ml_dtypes.iinfo(given.dtype)
    below = given.values.below(draw.sizes)
    if below is not None:
        return 0, min(below, int(info.max) + 1)
    if "mask" in given.name.lower():
        return 0, 2
    if given.dtype.name in _BYTES:
        return int(info.min), int(info.max) + 1
    low = int(draw.integers == 1)
    return low, min(max(draw.integers, 1) + low, int(info.max) + 1)
