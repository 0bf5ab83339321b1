"""Hooks that keep zeros zero and shared weights equal while a network is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from graphopt.ir import Graph
from graphopt.sparse import kept_weights
from graphopt.train.hooks import Hook, Training

__all__ = ["KeepCodes", "KeepZeros", "keepers"]


def keepers(graph: Graph) -> tuple[Hook, ...]:
    """The hooks that a network needs for what it notes."""
    kept = kept_weights(graph)
    pruned = tuple(name for name in kept.pruned if name not in kept.shared)  # zero is a code
    hooks: list[Hook] = [KeepCodes(kept.shared)] if kept.shared else []
    return (*hooks, KeepZeros(pruned)) if pruned else tuple(hooks)


@dataclass
class KeepZeros(Hook):
    """What is zero when the training starts stays zero; momentum cannot bring it back."""

    names: tuple[str, ...]
    _kept: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def start(self, training: Training) -> None:
        weights = training.weights
        self._kept = {name: (weights[name] != 0) for name in self.names if name in weights}

    def after_backward(self, training: Training, done: float) -> None:
        weights = training.weights
        for name, kept in self._kept.items():
            grad = weights[name].grad
            if grad is not None:
                grad.mul_(kept.to(grad.device))

    def after_step(self, training: Training, done: float) -> None:
        weights = training.weights
        with torch.no_grad():
            for name, kept in self._kept.items():
                weights[name].mul_(kept.to(weights[name].device))


@dataclass
class _Codes:
    """Where each element's value lies, and which place is zero (-1: none)."""

    places: torch.Tensor
    count: int
    zero: int

    def gathered(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of every value: the sum over the elements that have it; none for zero."""
        places = self.places.to(grad.device)
        sums = torch.zeros(self.count, dtype=grad.dtype, device=grad.device)
        sums.index_add_(0, places.reshape(-1), grad.reshape(-1))
        if self.zero >= 0:
            sums[self.zero] = 0
        return sums[places]

    def spread(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with its values' means: rounding must not part what is equal.

        An element that another hook has just pruned has no value any more.
        """
        places, there = self.places.to(weight.device), weight != 0
        sums = torch.zeros(self.count, dtype=torch.float64, device=weight.device)
        sums.index_add_(0, places.reshape(-1), weight.reshape(-1).double())
        counts = torch.bincount(places[there], minlength=self.count)
        values = (sums / counts.clamp(min=1)).to(weight.dtype)
        if self.zero >= 0:
            values[self.zero] = 0
        return values[places] * there


@dataclass
class KeepCodes(Hook):
    """Elements that are equal when the training starts stay equal: their values are trained.

    The gradient of a value is the sum over its elements (Han et al. 2016); zero is not trained.
    """

    names: tuple[str, ...]
    _codes: dict[str, _Codes] = field(default_factory=dict, init=False, repr=False)

    def start(self, training: Training) -> None:
        weights = training.weights
        self._codes = {name: _codes(weights[name]) for name in self.names if name in weights}

    def after_backward(self, training: Training, done: float) -> None:
        weights = training.weights
        for name, codes in self._codes.items():
            grad = weights[name].grad
            if grad is not None:
                grad.copy_(codes.gathered(grad))

    def after_step(self, training: Training, done: float) -> None:
        weights = training.weights
        with torch.no_grad():
            for name, codes in self._codes.items():
                weights[name].copy_(codes.spread(weights[name]))


def _codes(weight: torch.Tensor) -> _Codes:
    values, places = torch.unique(weight.detach().cpu(), return_inverse=True)
    zero = torch.nonzero(values == 0)
    return _Codes(places, len(values), int(zero[0]) if len(zero) else -1)
