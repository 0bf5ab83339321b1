"""Inputs whose batches differ in shape: sequences of many lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.data import Dataset
from graphopt.data.inputs import InputSpec
from graphopt.ir import Graph
from tests.asserting import parse


@dataclass(frozen=True)
class _Sequences:
    """Rows of many lengths, each batch as long as its longest row."""

    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        values = np.zeros((len(indices), max(self.lengths[i] for i in indices), 6), np.float32)
        for row, index in zip(values, indices, strict=True):
            length = self.lengths[index]
            row[:length] = np.random.default_rng(index).standard_normal((length, 6))
        return {"x": values}

    def labels(self, indices: np.ndarray) -> None:
        return None

    def bind(self, inputs: Sequence[InputSpec]) -> _Sequences:
        return self

    def fingerprint(self, indices: np.ndarray) -> str:
        return repr(self)


_TEXT = """s (float[N,T,6] x) => (float[N,T,4] y) <float[6,6] w, float[6,4] v> {
    h = MatMul(x, w)
    r = Relu(h)
    y = MatMul(r, v)
}"""


def sequences() -> tuple[Graph, Dataset]:
    """A network of two layers for sequences, and 70 of them."""
    lengths = tuple(int(n) for n in np.random.default_rng(1).integers(1, 60, 70))
    return Graph.load(parse(_TEXT)), Dataset.of(_Sequences(lengths), "sequences")
