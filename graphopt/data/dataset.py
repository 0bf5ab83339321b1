"""A set of inputs for a model, read batch by batch."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from graphopt.data.arrays import ArraySource
from graphopt.data.inputs import InputSpec, fixed_batch
from graphopt.errors import DataError

__all__ = ["Dataset", "Source"]

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Rows that can be read in any order, however they are stored."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """These rows, one array for each input, ready to be fed."""
        ...

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The classes (int64) of these rows, if there are any."""
        ...

    def bind(self, inputs: Sequence[InputSpec]) -> Source:
        """The same rows in the shape and under the names that a model takes, or a DataError."""
        ...

    def fingerprint(self, indices: np.ndarray) -> str:
        """A text that changes when the content of these rows may have changed."""
        ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """Some rows of a source, in an order; taking, splitting and selecting copy no data.

    Where rows may differ in shape each is a batch of its own: `alone`.
    """

    source: Source = field(repr=False)
    spec: str
    indices: np.ndarray = field(repr=False)
    fixed_batch: int | None = None
    alone: bool = False

    @classmethod
    def of(cls, source: Source, spec: str, *, alone: bool = False) -> Dataset:
        """Every row of a source."""
        if len(source) == 0:
            raise DataError(f"data: {spec} is empty; give at least one row")
        return cls(source, spec, np.arange(len(source)), alone=alone)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], labels: ArrayLike | None = None
    ) -> Dataset:
        """Arrays named after the model's inputs, rows along axis 0."""
        classes = None if labels is None else np.asarray(labels)
        return cls.of(ArraySource.of(arrays, classes, where="arrays"), "arrays")

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """The class (int64) of every row, or None."""
        return self.source.labels(self.indices)

    def bind(self, inputs: Sequence[InputSpec]) -> Dataset:
        """The same rows as a model takes them: names, sizes, axis order and batch size."""
        source = self.source.bind(inputs)
        return replace(self, source=source, fixed_batch=fixed_batch(inputs))

    def rows(self, size: int, start: int = 0) -> Iterator[slice]:
        """The rows of this set that each batch of `batches(size)` holds, from row `start` on.

        A model with a fixed batch gets just that many rows whatever is asked for; what does not
        fill a last batch of that size is left out.
        """
        step = self._step(size)
        stop = len(self)
        if self.fixed_batch:
            if stop < step:
                raise DataError(
                    f"data: the model takes exactly {step} rows at a time, {self.spec} has "
                    f"{stop}; give at least {step}"
                )
            stop -= stop % step
        return (slice(i, min(i + step, stop)) for i in range(start, stop, step))

    def batches(self, size: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Each batch in turn, read when it is asked for; see `rows` for what a batch holds."""
        rows = self.rows(size, start)
        if self.fixed_batch and (left_out := len(self) % self.fixed_batch):
            _log.info(
                "data: %d of the %d rows of %s do not fill a batch of %d and are left out",
                left_out, len(self), self.spec, self.fixed_batch,
            )  # fmt: skip
        return (self.source.read(self.indices[row]) for row in rows)

    def take(self, n: int) -> Dataset:
        """The first n rows, at least one batch of a model that fixes it; all if there are fewer."""
        if n < 1:
            raise DataError(f"data: at least 1 row must be taken of {self.spec}, got {n}")
        return replace(self, indices=self.indices[: max(n, self.fixed_batch or 1)])

    def select(self, indices: ArrayLike) -> Dataset:
        """The rows at these positions, in this order."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if not len(chosen):
            raise DataError(f"data: no row of {self.spec} was selected; select at least one")
        if chosen.min() < 0 or chosen.max() >= len(self):
            wrong = chosen[(chosen < 0) | (chosen >= len(self))][0]
            raise DataError(f"data: {self.spec} has rows 0 to {len(self) - 1}, got {wrong}")
        return replace(self, indices=self.indices[chosen])

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """A random `fraction` of the rows, and the others.

        Both come in random order, so that `take(n)` of a part is a fair sample of it, and each
        fills at least one batch.
        """
        if not 0 < fraction < 1:
            raise DataError(f"data: the split fraction must be between 0 and 1, got {fraction}")
        unit = self.fixed_batch or 1
        if len(self) < 2 * unit:
            raise DataError(
                f"data: {self.spec} has {len(self)} rows, too few to be split in two; give at "
                f"least {2 * unit}"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        units = len(self) // unit
        count = unit * min(max(round(fraction * units), 1), units - 1)
        return self.select(order[:count]), self.select(order[count:])

    def fingerprint(self) -> str:
        """A hash of what is read, how it is prepared and in which order, cheap to compute."""
        digest = hashlib.sha256(self.source.fingerprint(self.indices).encode())
        digest.update(np.ascontiguousarray(self.indices, dtype="<i8").tobytes())
        digest.update(str(self.fixed_batch).encode())
        return digest.hexdigest()

    def _step(self, size: int) -> int:
        if size < 1:
            raise DataError(f"data: a batch must have at least 1 row, got {size}")
        return self.fixed_batch or (1 if self.alone else size)
