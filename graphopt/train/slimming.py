"""Pull the scales of BatchNormalization towards zero while a network is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from graphopt.coupling import Family
from graphopt.coupling.units import noted_units
from graphopt.ir import Graph
from graphopt.train.hooks import Hook, Training

__all__ = ["ScalePull", "scales_of"]

Pulls = Mapping[str, npt.NDArray[np.float64]]
"""For each scale, by name, its unit at the channels that could be removed, and 0 at the others."""


@dataclass
class ScalePull(Hook):
    """Adds the sub-gradient of an L1 penalty, as Liu et al. (2017) do: not a term of the loss."""

    strength: float
    pulls: Pulls = field(repr=False)

    def __post_init__(self) -> None:
        self._signed: dict[str, torch.Tensor] = {}

    def start(self, training: Training) -> None:
        self._signed = {
            name: self.strength * torch.from_numpy(units).to(training.weights[name].dtype)
            for name, units in self.pulls.items()
        }

    def after_backward(self, training: Training, done: float) -> None:
        weights = training.weights
        for name, pull in self._signed.items():
            scale = weights[name]
            if scale.grad is not None:
                scale.grad.add_(pull.to(scale.device) * scale.detach().sign())


def scales_of(graph: Graph, families: Sequence[Family]) -> Pulls:
    """The scales of BatchNormalization that channels of these families pass through."""
    scales = {
        str(node.inputs[1].name)
        for node in graph.nodes
        if node.op == "BatchNormalization" and graph.constant(node.inputs[1].name) is not None
    }
    units = noted_units(graph)
    pulls: dict[str, npt.NDArray[np.float64]] = {}
    for member in (member for family in families for member in family.members):
        array = graph.constant(member.tensor)
        if member.tensor in scales and array is not None:
            pull = pulls.setdefault(member.tensor, np.zeros(array.shape))
            pull[member.places] = units.get(member.tensor, 1.0)
    return pulls
