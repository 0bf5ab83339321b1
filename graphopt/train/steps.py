"""Learn the steps of quantization together with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from graphopt.train.hooks import Hook, Training

__all__ = ["StepSizes"]


@dataclass
class StepSizes(Hook):
    """Makes scales parameters (Esser et al. 2020, learned step sizes).

    `gains` has a factor for the gradient of each scale, by its name: 1 / sqrt(elements that share
    it x largest code), so that steps move about as fast as weights. Rounding passes gradients, so
    what reaches a scale is the rounding error of each element, or the end of the range where it
    is clamped. Scales stay positive: none falls below a thousandth of what it was.
    """

    gains: Mapping[str, float]
    _scales: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _floors: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def start(self, training: Training) -> None:
        module = training.module
        for path, name in list(module.binding.items()):
            if name not in self.gains or path not in dict(module.named_buffers()):
                continue
            scale = nn.Parameter(module.get_buffer(path).clone())
            delattr(module, path)
            module.register_parameter(path, scale)
            self._scales[name] = scale
            self._floors[name] = scale.detach().clone() * 1e-3

    def after_backward(self, training: Training, done: float) -> None:
        for name, scale in self._scales.items():
            if scale.grad is not None:
                scale.grad.mul_(self.gains[name])

    def after_step(self, training: Training, done: float) -> None:
        with torch.no_grad():
            for name, scale in self._scales.items():
                scale.copy_(torch.maximum(scale, self._floors[name].to(scale.device)))
