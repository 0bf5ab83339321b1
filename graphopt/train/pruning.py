"""Hooks that prune while a network is trained: a ramp of exact levels, and reversible surgery."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from graphopt.sparse import Allocation, kept_at
from graphopt.train.hooks import Hook, Training

__all__ = ["Ramp", "Surgery"]

Masks = dict[str, torch.Tensor]


def ramp_level(first: float, last: float, part: float) -> float:
    """The sparsity when a part of the ramp is over: much goes at first, little at the end."""
    return last + (first - last) * (1 - min(max(part, 0.0), 1.0)) ** 3


def _masks(training: Training, names: tuple[str, ...], level: float, how: Allocation) -> Masks:
    weights = training.weights
    arrays = {name: weights[name].detach().cpu().numpy() for name in names}
    kept = kept_at(arrays, level, how)
    return {name: torch.from_numpy(mask).to(weights[name].device) for name, mask in kept.items()}


def _sparsity(training: Training, names: tuple[str, ...]) -> float:
    weights = [training.weights[name].detach() for name in names]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


@dataclass
class _Pruning(Hook):
    """Zeros `names` by and by, up to `sparsity` when the part `until` of the training is over."""

    names: tuple[str, ...]
    sparsity: float
    allocation: Allocation
    until: float
    interval: int = 16
    _first: float = field(default=0.0, init=False, repr=False)
    _step: int = field(default=0, init=False, repr=False)
    _masks: Masks = field(default_factory=dict, init=False, repr=False)
    _settled: bool = field(default=False, init=False, repr=False)

    def start(self, training: Training) -> None:
        self._first, self._step, self._settled = _sparsity(training, self.names), 0, False
        self._masks = _masks(training, self.names, self._first, self.allocation)

    def _level(self, done: float) -> float:
        return ramp_level(self._first, self.sparsity, done / self.until)

    def state(self) -> dict[str, torch.Tensor]:
        numbers = [float(self._step), self._first, float(self._settled)]
        masks = {f"mask {name}": mask for name, mask in self._masks.items()}
        return {"numbers": torch.tensor(numbers, dtype=torch.float64), **masks}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        step, self._first, settled = state["numbers"].tolist()
        self._step, self._settled = int(step), bool(settled)
        self._masks = {name: state[f"mask {name}"].bool() for name in self.names}


@dataclass
class Ramp(_Pruning):
    """The smallest weights go along a cubic ramp, and get no gradient from then on.

    Zhu & Gupta 2017: every `interval` steps the level is (last + (first - last)(1 - t)^3).
    """

    def after_backward(self, training: Training, done: float) -> None:
        for name, mask in self._masks.items():
            grad = training.weights[name].grad
            if grad is not None:
                grad.mul_(mask.to(grad.device))

    def after_step(self, training: Training, done: float) -> None:
        self._step += 1
        _apply(training, self._masks)  # momentum from before has moved what is gone
        due = self._step % self.interval == 0 and done < self.until
        if due or (done >= self.until and not self._settled):
            self._settled = done >= self.until
            self._masks = _masks(training, self.names, self._level(done), self.allocation)
            _apply(training, self._masks)

    def finish(self, training: Training) -> None:
        if not self._settled:
            self._masks = _masks(training, self.names, self.sparsity, self.allocation)
        _apply(training, self._masks)


@dataclass
class Surgery(_Pruning):
    """Weights are pruned and spliced in again while all of them are trained (Guo et al. 2016).

    The network computes with masked weights, but gradients go to all: what was pruned wrongly
    grows and returns. A weight goes below 0.9 of the threshold and returns above 1.1 of it; the
    threshold is where the ramp's level is reached. A step changes masks with the probability
    (1 + `decay` step)^-1, and none does after `until`, when the level is made exact.
    """

    decay: float = 1e-4
    seed: int = 0
    _dense: Masks = field(default_factory=dict, init=False, repr=False)

    def before_step(self, training: Training, done: float) -> None:
        self._dense = {n: training.weights[n].detach().clone() for n in self._masks}
        _apply(training, self._masks)

    def after_backward(self, training: Training, done: float) -> None:
        with torch.no_grad():
            for name, dense in self._dense.items():
                training.weights[name].copy_(dense)

    def after_step(self, training: Training, done: float) -> None:
        self._step += 1
        if done >= self.until:
            self._settle(training)
            return
        draw = np.random.default_rng([self.seed, self._step]).random()
        if draw < 1 / (1 + self.decay * self._step) and self._step % self.interval == 0:
            exact = _masks(training, self.names, self._level(done), self.allocation)
            for name, mask in exact.items():
                self._masks[name] = _hysteresis(training.weights[name], mask, self._masks[name])

    def _settle(self, training: Training) -> None:
        if not self._settled:
            self._masks = _masks(training, self.names, self.sparsity, self.allocation)
            self._settled = True

    def finish(self, training: Training) -> None:
        self._settle(training)
        _apply(training, self._masks)


def _hysteresis(weight: torch.Tensor, exact: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The mask that was, but for weights clearly on one side of the exact mask's threshold."""
    magnitude, before = weight.detach().abs(), before.to(weight.device)
    gone = magnitude[~exact]
    threshold = float(gone.max()) if len(gone) else -math.inf
    return torch.where(before, magnitude > 0.9 * threshold, magnitude > 1.1 * threshold)


def _apply(training: Training, masks: Masks) -> None:
    with torch.no_grad():
        for name, mask in masks.items():
            weight = training.weights[name]
            weight.mul_(mask.to(weight.device))
