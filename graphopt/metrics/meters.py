"""What each metric keeps while it sees a model's outputs, batch after batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, SupportsFloat

import numpy as np

from graphopt.data import user_code
from graphopt.data.wording import reason
from graphopt.errors import DataError

__all__ = [
    "Agreement",
    "ErrorPower",
    "Meter",
    "OfUser",
    "Outputs",
    "TopK",
    "class_scores",
    "require_scores",
]

Outputs = Sequence[np.ndarray]


class Meter(Protocol):
    """What a metric keeps while it sees batch after batch."""

    def update(self, outputs: Outputs, original: Outputs, labels: np.ndarray | None) -> None:
        """Count one batch; `original` is empty for a metric that is not relative."""
        ...

    def value(self) -> float:
        """The metric over all batches."""
        ...


def class_scores(output: np.ndarray) -> np.ndarray | None:
    """An output as (row, class) scores, or None where it does not look like that."""
    if output.dtype.kind != "f" and output.dtype.name != "bfloat16":
        return None
    if output.ndim < 2 or output.shape[1] < 2 or any(size != 1 for size in output.shape[2:]):
        return None
    scores = output.reshape(output.shape[0], output.shape[1])
    return scores if output.dtype.kind == "f" else scores.astype(np.float32)


def require_scores(metric: str, outputs: Outputs) -> np.ndarray:
    """The first output as class scores, or a DataError in the name of the metric."""
    scores = class_scores(outputs[0]) if outputs else None
    if scores is None:
        found = f"{outputs[0].dtype} {outputs[0].shape}" if outputs else "none"
        raise DataError(
            f"metric {metric}: the first output must be scores (rows, classes), found {found}; "
            f"use sqnr"
        )
    return scores


def _best(scores: np.ndarray) -> np.ndarray:
    """The winning class of each row, -1 where a score is no number."""
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


class TopK:
    """The share of rows whose label is among the k best scores (of equals, the first is best)."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._name = f"top{k}"
        self._hits = 0
        self._rows = 0

    def update(self, outputs: Outputs, original: Outputs, labels: np.ndarray | None) -> None:
        assert labels is not None, "evaluate refuses data without labels"
        scores = require_scores(self._name, outputs)
        self._check(scores, labels)
        if self._k == 1:
            hit = _best(scores) == labels
        else:
            own = scores[np.arange(len(labels)), labels][:, None]
            before = np.arange(scores.shape[1]) < labels[:, None]
            ahead = ((scores > own) | ((scores == own) & before)).sum(axis=1)
            hit = (ahead < self._k) & ~np.isnan(scores).any(axis=1)
        self._hits += int(hit.sum())
        self._rows += len(labels)

    def value(self) -> float:
        return self._hits / self._rows

    def _check(self, scores: np.ndarray, labels: np.ndarray) -> None:
        rows, classes = scores.shape
        if rows != len(labels):
            raise DataError(
                f"metric {self._name}: the model gave {rows} rows for {len(labels)} inputs; its "
                f"first output must have one row for each"
            )
        if classes <= self._k > 1:
            raise DataError(
                f"metric {self._name}: of {classes} classes all are among the best {self._k}; use "
                f"top1"
            )
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise DataError(
                f"metric {self._name}: labels must be 0 to {classes - 1}, the model's classes, "
                f"found {wrong[0]}; renumber the labels"
            )


class Agreement:
    """The share of rows whose best class is the original's."""

    def __init__(self) -> None:
        self._same = 0
        self._rows = 0

    def update(self, outputs: Outputs, original: Outputs, labels: np.ndarray | None) -> None:
        found, wanted = (_best(require_scores("agreement", each)) for each in (outputs, original))
        if len(found) != len(wanted):
            raise DataError(
                f"metric agreement: the original gave {len(wanted)} rows, the model {len(found)}; "
                f"both must take the same inputs"
            )
        self._same += int((found == wanted).sum())
        self._rows += len(wanted)

    def value(self) -> float:
        return self._same / self._rows


class ErrorPower:
    """Running sums of error and signal, for each output that has numbers of its own."""

    def __init__(self, name: str, report: Callable[[float], float]) -> None:
        self._name = name
        self._report = report
        self._error: dict[int, float] = {}
        self._signal: dict[int, float] = {}

    def update(self, outputs: Outputs, original: Outputs, labels: np.ndarray | None) -> None:
        found_ranks, ranks = ([array.ndim for array in each] for each in (outputs, original))
        if found_ranks != ranks:
            raise DataError(
                f"metric {self._name}: the original's outputs have ranks {ranks}, the model's "
                f"{found_ranks}; both must give the same outputs"
            )
        for index, (found, wanted) in enumerate(zip(outputs, original, strict=True)):
            if wanted.dtype.kind not in "OSU":
                error, signal = _powers(found.astype(np.float64), wanted.astype(np.float64))
                self._error[index] = self._error.get(index, 0.0) + error
                self._signal[index] = self._signal.get(index, 0.0) + signal

    def value(self) -> float:
        """Every output counts alike, whatever its size and scale."""
        if not self._error:
            raise DataError(f"metric {self._name}: the model has no numeric output to compare")
        return self._report(float(np.mean([self._ratio(index) for index in self._error])))

    def _ratio(self, index: int) -> float:
        error, signal = self._error[index], self._signal[index]
        if error == 0:
            return 0.0
        return error / signal if signal else math.inf


def _powers(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Sum of squared errors and of squared values; what is not finite must be just the same.

    So must sizes, which can depend on the data (a detector's boxes).
    """
    finite = np.isfinite(wanted)
    signal = float(np.square(wanted[finite]).sum())
    if found.shape != wanted.shape:
        return math.inf, signal
    same = np.array_equal(found[~finite], wanted[~finite], equal_nan=True)
    if not same or not np.isfinite(found[finite]).all():
        return math.inf, signal
    return float(np.square(found[finite] - wanted[finite]).sum()), signal


class OfUser:
    """All outputs of the data set, for a function that wants them at once."""

    def __init__(self, text: str, function: Callable[..., object]) -> None:
        self._text = text
        self._function = function
        self._outputs: list[list[np.ndarray]] = []
        self._labels: list[np.ndarray] = []

    def update(self, outputs: Outputs, original: Outputs, labels: np.ndarray | None) -> None:
        self._outputs.append([array.copy() for array in outputs])
        if labels is not None:
            self._labels.append(labels)

    def value(self) -> float:
        labels = np.concatenate(self._labels) if self._labels else None
        try:
            joined = [np.concatenate(parts) for parts in zip(*self._outputs, strict=True)]
        except ValueError as error:
            raise DataError(
                f"metric: {self._text} takes all outputs joined by rows, but batches differ "
                f"({reason(error)}); give data of one shape"
            ) from error
        with user_code(self._text, "metric"):
            result = self._function(joined, labels)
        if isinstance(result, SupportsFloat) and np.ndim(np.asarray(result)) == 0:
            return float(result)
        raise DataError(f"metric: {self._text} must return a number, got {type(result).__name__}")
