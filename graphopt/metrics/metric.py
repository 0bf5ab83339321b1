"""A metric, and how it is taken of a model over a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.metrics.meters import Meter, Outputs

__all__ = ["Metric", "Predict", "Reference"]

Predict = Callable[[Mapping[str, np.ndarray]], Outputs]

BATCH_SIZE = 32
# Class scores of 50,000 images and 1,000 classes fit; dense outputs are computed again instead.
_KEPT_BYTES = 256 << 20


class Reference:
    """The original's outputs on one data set: kept in memory while small, else computed again."""

    def __init__(
        self,
        predict: Predict,
        dataset: Dataset,
        *,
        batch_size: int = BATCH_SIZE,
        kept_bytes: int = _KEPT_BYTES,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._predict = predict
        self._room = kept_bytes
        self._kept: dict[int, Outputs] = {}

    def outputs(self, number: int, batch: Mapping[str, np.ndarray]) -> Outputs:
        """What the original gives for batch `number` of the data set."""
        if number in self._kept:
            return self._kept[number]
        found = self._predict(batch)
        size_bytes = sum(array.nbytes for array in found)
        if size_bytes <= self._room:
            self._room -= size_bytes
            # A runtime may reuse the memory it lent for its outputs.
            self._kept[number] = [array.copy() for array in found]
        return found


@dataclass(frozen=True)
class Metric:
    """A named measure of quality; `relative` ones compare with the outputs of the original.

    `ideal` is the value that the original itself has in a relative metric, `loss` how a value is
    counted against a budget: `--max-drop` bounds the rise of the loss.
    """

    name: str
    about: str
    higher_is_better: bool
    needs_labels: bool
    relative: bool
    meter: Callable[[], Meter] = field(repr=False)
    loss: Callable[[float], float] = field(repr=False)
    ideal: float | None = None

    def evaluate(
        self,
        predict: Predict,
        dataset: Dataset,
        reference: Reference | Predict | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> float:
        """Measure a model on a data set, whose batches are read and run one at a time.

        A `Reference` brings its own batch size and must be of the same data set.
        """
        original = self._original(reference, dataset, batch_size)
        size = batch_size if original is None else original.batch_size
        labels = dataset.labels
        if self.needs_labels and labels is None:
            raise DataError(
                f"metric {self.name}: {dataset.spec} has no labels; give some, or use agreement"
            )
        meter = self.meter()
        pairs = zip(dataset.rows(size), dataset.batches(size), strict=True)
        for number, (rows, batch) in enumerate(pairs):
            wanted = () if original is None else original.outputs(number, batch)
            meter.update(predict(batch), wanted, None if labels is None else labels[rows])
        return meter.value()

    def drop(self, baseline: float, result: float) -> float:
        """How much was lost, in units of `--max-drop`; below 0 where something was gained."""
        if math.isnan(result):
            return math.inf
        return self.loss(result) - self.loss(baseline)

    def _original(
        self, reference: Reference | Predict | None, dataset: Dataset, batch_size: int
    ) -> Reference | None:
        if not self.relative:
            return None
        if reference is None:
            raise DataError(f"metric {self.name}: it compares with the original; give its outputs")
        if not isinstance(reference, Reference):
            return Reference(reference, dataset, batch_size=batch_size, kept_bytes=0)
        if reference.dataset is not dataset:
            raise DataError(
                f"metric {self.name}: the reference is of {reference.dataset.spec}, not of the "
                f"{dataset.spec} that is measured; give one of the same data set"
            )
        return reference
