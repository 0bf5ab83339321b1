"""Rows that differ in shape, as photographs or sentences do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphopt.data.arrays import ArraySource
from graphopt.data.inputs import InputSpec
from graphopt.errors import DataError

__all__ = ["RaggedSource"]


@dataclass(frozen=True, eq=False)
class RaggedSource:
    """Some sources one after the other, each of rows of one shape."""

    parts: tuple[ArraySource, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Copy these rows. Raises DataError where they are not of one part."""
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        owner = int(owners[0])
        if (owners != owner).any():
            raise DataError(
                f"data: {self.parts[0].where} has rows of several shapes, which make no batch "
                "together; pad them to one shape"
            )
        return self.parts[owner].read(indices - self._starts[owner])

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The classes of these rows, if they were given."""
        found = [part.classes for part in self.parts if part.classes is not None]
        return np.concatenate(found)[indices] if len(found) == len(self.parts) else None

    def bind(self, inputs: Sequence[InputSpec]) -> RaggedSource:
        """The same rows, once they are known to fit the inputs."""
        return RaggedSource(tuple(part.bind(inputs) for part in self.parts))

    def fingerprint(self, indices: np.ndarray) -> str:
        """A digest of all parts."""
        facts = [part.fingerprint(indices) for part in self.parts]
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()

    @cached_property
    def _starts(self) -> np.ndarray:
        """The first row of each part."""
        return np.cumsum([0, *map(len, self.parts[:-1])])
