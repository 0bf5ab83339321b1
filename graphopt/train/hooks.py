"""Where others take part in a training: to add to gradients, re-apply masks, alter the module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from graphopt.lens import LoweredModule

__all__ = ["Hook", "Training", "trained_weights"]


def trained_weights(module: LoweredModule) -> dict[str, nn.Parameter]:
    """The parameters of a module by the names of their initializers."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {name: parameters[path] for path, name in module.binding.items() if path in parameters}


class Training:
    """The module being trained; `weights` finds its parameters by the names of initializers.

    A module moves between devices and layouts with its Parameter objects staying the same.
    """

    def __init__(self, module: LoweredModule) -> None:
        self.module = module

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """As the module has them now: a hook may have replaced some."""
        return trained_weights(self.module)


class Hook:
    """Takes part in a training; every method may be left out.

    `done` is the part of the training that is over, 0 to 1.
    """

    def start(self, training: Training) -> None:
        """Alter the module before the optimizer is made, or look parameters up.

        What is added as a parameter is trained. Initializers are written back from the path that
        `module.binding` has for them.
        """

    def before_step(self, training: Training, done: float) -> None:
        """Called before each forward run."""

    def after_backward(self, training: Training, done: float) -> None:
        """Add to gradients, or mask them; they are clipped afterwards."""

    def after_step(self, training: Training, done: float) -> None:
        """Re-apply masks: the optimizer has just changed the weights."""

    def after_epoch(self, training: Training, done: float) -> None:
        """Called when every row has been seen once more."""

    def finish(self, training: Training) -> None:
        """Make the kept weights what the graph shall get; called before they are written back."""

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold of the hook, beyond weights."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""
