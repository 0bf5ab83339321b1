"""What is minimised: functions of a network's outputs and the batch they belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn import functional

from graphopt.data import is_function_name, load_function, source_digest, user_code
from graphopt.errors import DataError, RecipeError
from graphopt.train.batches import Batch, Outputs

__all__ = ["CrossEntropy", "Objective", "OfUser", "SquaredError", "objective_of"]


class Objective(Protocol):
    """A function of outputs and batch whose value is a mean over rows.

    Its `repr` is part of what a checkpoint is recognised by: let it tell all settings.
    """

    def __call__(self, outputs: Outputs, batch: Batch) -> torch.Tensor: ...


def _labels(batch: Batch) -> torch.Tensor:
    if batch.labels is None:
        raise DataError("train: this loss needs labels, and the data have none; give some")
    return batch.labels


def _scores(outputs: Outputs) -> torch.Tensor:
    """The first output as (rows, classes)."""
    return outputs[0].reshape(len(outputs[0]), -1)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the first output's class scores (before a softmax) and the labels."""

    smoothing: float = 0.0

    def __call__(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        scores = _scores(outputs)
        return functional.cross_entropy(scores, _labels(batch), label_smoothing=self.smoothing)


@dataclass(frozen=True)
class SquaredError:
    """Mean squared error of the first output: one number beside the label, or scores beside 1."""

    def __call__(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        scores, labels = _scores(outputs), _labels(batch)
        if scores.shape[1] == 1:
            return functional.mse_loss(scores[:, 0], labels.to(scores.dtype))
        wanted = functional.one_hot(labels, scores.shape[1]).to(scores.dtype)
        return functional.mse_loss(scores, wanted)


@dataclass(frozen=True)
class OfUser:
    """A function of the user's: it takes a list of outputs and the labels, and gives a scalar."""

    text: str
    function: Callable[..., object] = field(repr=False)
    source: str = ""
    """A digest of the file, so that a checkpoint of another one is not gone on from."""

    def __call__(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        with user_code(self.text, "loss"):
            loss = self.function(list(outputs), batch.labels)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise DataError(f"loss: {self.text} must return a tensor of one number, got {found}")
        if not loss.requires_grad and torch.is_grad_enabled():
            raise DataError(
                f"loss: {self.text} returns a number without a gradient; compute it from the "
                f"outputs with torch"
            )
        return loss.reshape(())


def objective_of(loss: str, smoothing: float = 0.0) -> Objective:
    """The objective `cross-entropy`, `mse`, or the user's own `file.py:function`."""
    if loss == "cross-entropy":
        return CrossEntropy(smoothing)
    if loss == "mse":
        return SquaredError()
    if is_function_name(loss):
        return OfUser(loss, load_function(loss, "loss"), source_digest(loss))
    raise RecipeError(
        f"loss: {loss!r} is neither cross-entropy nor mse nor file.py:function; name one of them"
    )
