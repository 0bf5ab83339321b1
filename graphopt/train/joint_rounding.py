"""Learn which way to round the weights of several layers, by gradients of what all give together.

Li et al. 2021 (BRECQ): errors of layers within a block are no sum, so the block is what should give
the same; each weight goes down or up as in AdaRound (see `learned_rounding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from graphopt.ir import Array, Graph
from graphopt.lens import LoweredModule, lower
from graphopt.train.devices import find_device
from graphopt.train.learned_rounding import Descent, pull_to_ends, rectified, start_variable

__all__ = ["JointTask", "Unrounded", "learn_joint_rounding"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Unrounded:
    """A weight in unrounded codes; scales and zeros broadcast against it."""

    codes: Floats
    scale: Floats
    zero: Floats
    limits: tuple[int, int]


@dataclass(frozen=True, eq=False)
class JointTask:
    """A part of a network: `piece` reads `reads` and then the `weights`, and should give `aim`."""

    piece: Graph
    reads: tuple[Array, ...]
    weights: tuple[Unrounded, ...]
    aim: Array


class _Weight:
    """A weight between the code below and the one above."""

    def __init__(self, given: Unrounded, device: torch.device) -> None:
        codes, self._scale, self._zero = (
            torch.from_numpy(array).to(device) for array in (given.codes, given.scale, given.zero)
        )
        self._limits = given.limits
        self._below = codes.floor()
        self.first = codes.round().clamp(*self._limits)
        self.variable = start_variable(codes - self._below)

    def between(self, up: torch.Tensor) -> torch.Tensor:
        return self.read((self._below + up).clamp(*self._limits))

    def read(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes - self._zero) * self._scale

    def rounded(self) -> torch.Tensor:
        up = rectified(self.variable.detach()) >= 0.5
        return (self._below + up).clamp(*self._limits)


def learn_joint_rounding(
    task: JointTask, descent: Descent
) -> tuple[list[npt.NDArray[np.float64]], tuple[float, float]]:
    """The codes of all weights, and the relative square error of what they give before and after.

    Before, they are rounded to the nearest; where training did not help they still are.
    """
    device = torch.device(find_device(descent.device))
    module = lower(task.piece).to(device)
    reads = [torch.from_numpy(array) for array in task.reads]
    aim = torch.from_numpy(task.aim)
    energy = float(aim.square().mean()) or 1.0
    weights = [_Weight(each, device) for each in task.weights]
    optimizer = torch.optim.Adam([weight.variable for weight in weights], lr=descent.rate)
    draw = torch.Generator().manual_seed(descent.seed)
    for step in range(descent.steps):
        rows = torch.randperm(len(aim), generator=draw)[: descent.batch]
        ups = [rectified(weight.variable) for weight in weights]
        between = [weight.between(up) for weight, up in zip(weights, ups, strict=True)]
        made = module(*(array[rows].to(device) for array in reads), *between)
        loss = (made - aim[rows].to(device)).square().mean() / energy
        loss = loss + descent.sharpness * pull_to_ends(ups, step / descent.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tried = [[weight.first for weight in weights], [weight.rounded() for weight in weights]]
    errors = []
    for codes in tried:
        values = [weight.read(code) for weight, code in zip(weights, codes, strict=True)]
        errors.append(_error(module, reads, values, aim, descent.batch) / energy)
    kept = tried[1] if errors[1] < errors[0] else tried[0]
    found = [np.asarray(code.cpu().numpy(), np.float64) for code in kept]
    return found, (errors[0], min(errors))


def _error(
    module: LoweredModule,
    reads: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    aim: torch.Tensor,
    batch: int,
) -> float:
    """The mean square error of what the part gives."""
    total = 0.0
    device = weights[0].device
    with torch.no_grad():
        for start in range(0, len(aim), batch):
            part = slice(start, start + batch)
            made = module(*(array[part].to(device) for array in reads), *weights)
            total += float((made - aim[part].to(device)).square().sum(dtype=torch.float64))
    return total / aim.numel()
