"""The judge: the user's metric on held-out data, for the original and for every candidate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphopt.data import Dataset, source_digest
from graphopt.errors import DataError, ModelError
from graphopt.ir import Graph
from graphopt.metrics import Metric, Reference, choose, class_scores
from graphopt.runtime import Session

__all__ = ["HELD_OUT", "Judge", "check_start", "split_data"]

HELD_OUT = 0.5
"""The fraction of unlabeled `--data` that measures rather than calibrates, refits and trains."""

_GUESSES = {"top1": 1, "top5": 5}
"""How many classes a metric lets a model name."""


def check_start(graph: Graph, *data: object) -> None:
    """Raise for what no run can start from: broken graphs, and names where data are wanted."""
    for given in data:
        if given is not None and not isinstance(given, Dataset):
            raise DataError(
                f"data: must be a Dataset, got {type(given).__name__}; make one with "
                "graphopt.data.open('images/') or graphopt.data.Dataset.from_arrays({'x': array})"
            )
    try:
        graph.verify()
    except ModelError as error:
        name = graph.source and graph.source.path
        raise ModelError(f"{f'{name}: ' if name else ''}{error}; export it again") from error


def split_data(
    data: Dataset | None, measure: Dataset | None, seed: int
) -> tuple[Dataset | None, Dataset | None]:
    """The part that calibrates and the part that measures; they never overlap."""
    if data is None or measure is not None:
        return data, measure
    if len(data) < 2:
        raise DataError(f"data {data.spec}: one input cannot both calibrate and measure; give two")
    return data.split(1 - HELD_OUT, seed)


class Judge:
    """A metric bound to data and to the original whose loss is measured."""

    def __init__(self, original: Graph, dataset: Dataset, metric: str | None, threads: int) -> None:
        self._threads = threads
        self._dataset = dataset
        self._source = source_digest(metric or "")
        self._session = Session.open(original, threads=threads)
        first = next(iter(dataset.batches(2)))
        for name, array in first.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise DataError(
                    f"data {dataset.spec}: input {name!r} holds NaN, which agrees with nothing; "
                    "look at what makes the data"
                )
        outputs = self._session.run(first)
        self._metric: Metric = choose(
            metric, has_labels=dataset.labels is not None, outputs=outputs
        )
        self._scores = class_scores(outputs[0]) if outputs else None
        self._reference = Reference(self._session.run, dataset)
        self.baseline = self._metric.evaluate(self._session.run, dataset, self._reference)
        if np.isnan(self.baseline):
            raise DataError(
                f"metric {self.name}: is NaN for the original, which no loss can be told from; "
                "look at the metric and the data"
            )

    @property
    def fingerprint(self) -> str:
        """What tells this measure from others."""
        return f"{self.name} {self._source} {self._dataset.fingerprint()}"

    @property
    def name(self) -> str:
        return self._metric.name

    @property
    def doubt(self) -> str | None:
        """What is wrong where the original is no better than guessing: then no loss shows."""
        guesses = _GUESSES.get(self.name)
        classes = 0 if self._scores is None else self._scores.shape[1]
        if guesses is None or guesses >= classes or self.baseline > guesses / classes:
            return None
        return (
            f"metric {self.name}: the original has {self.baseline:.4f}, no more than by guessing, "
            "so no loss shows; look at the order of the classes and the preprocessing"
        )

    def evaluate(self, graph: Graph) -> float:
        """The metric of a graph on the held-out data."""
        with Session.open(graph, threads=self._threads) as session:

            def predict(batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
                return session.run(batch)

            return self._metric.evaluate(predict, self._dataset, self._reference)

    def drop(self, value: float) -> float:
        """How much worse than the original, in units of `--max-drop`."""
        return self._metric.drop(self.baseline, value)
