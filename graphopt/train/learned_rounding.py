"""Learn which way to round each weight of a layer, by gradients of the error of its output.

Nagel et al. 2020 (AdaRound): a weight goes down or up by h(v) in [0, 1], a stretched sigmoid of a
variable that is trained with Adam; a regulariser that sharpens over time drives h to 0 or 1. The
output is compared behind its clamp, so that what a ReLU hides does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from graphopt.train.devices import find_device

__all__ = [
    "Descent",
    "RoundingTask",
    "learn_rounding",
    "pull_to_ends",
    "rectified",
    "start_variable",
]

Floats = npt.NDArray[np.float32]

_ABOVE, _BELOW = 1.1, -0.1
"""The sigmoid is stretched to this range and cut to [0, 1], so that 0 and 1 can be reached."""
_FIRST_POWER, _LAST_POWER = 20.0, 2.0
"""The regulariser's exponent falls from one to the other."""
_FREE = 0.2
"""Part of the steps that have no regulariser."""


@dataclass(frozen=True)
class Descent:
    """How long, how fast, and on which device: auto, cpu or cuda.

    `sharpness` weighs the regulariser against the relative error.
    """

    steps: int
    batch: int
    rate: float
    sharpness: float
    seed: int
    device: str


@dataclass(frozen=True, eq=False)
class RoundingTask:
    """A layer: its weights in unrounded codes, what it reads and what it should give.

    codes, scale    (group, output, column)
    zero            the same; what a code is counted from
    limits          least and largest code
    inputs          (group, row, column)
    targets         (group, row, output), before the clamp
    bias            (group, output)
    clamp           least and largest output
    """

    codes: Floats
    scale: Floats
    zero: Floats
    limits: tuple[int, int]
    inputs: Floats
    targets: Floats
    bias: Floats
    clamp: tuple[float, float]


def learn_rounding(task: RoundingTask, descent: Descent) -> npt.NDArray[np.float64]:
    """The codes after training, as whole numbers."""
    device = torch.device(find_device(descent.device))
    inputs, targets, scale, zero = (
        torch.from_numpy(array).to(device)
        for array in (task.inputs, task.targets, task.scale, task.zero)
    )
    wanted = targets.clamp(*task.clamp)
    energy = float(wanted.square().mean()) or 1.0
    codes = torch.from_numpy(task.codes).to(device)
    below = codes.floor()
    bias = torch.from_numpy(task.bias).to(device).unsqueeze(1)
    variable = start_variable(codes - below)
    optimizer = torch.optim.Adam([variable], lr=descent.rate)
    draw = torch.Generator().manual_seed(descent.seed)
    for step in range(descent.steps):
        rows = torch.randint(inputs.shape[1], (descent.batch,), generator=draw).to(device)
        up = rectified(variable)
        weight = ((below + up).clamp(*task.limits) - zero) * scale
        made = torch.baddbmm(bias, inputs[:, rows], weight.transpose(1, 2)).clamp(*task.clamp)
        loss = (made - wanted[:, rows]).square().mean() / energy
        loss = loss + descent.sharpness * pull_to_ends([up], step / descent.steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = (below + (rectified(variable.detach()) >= 0.5)).clamp(*task.limits)
    return np.asarray(found.cpu().numpy(), np.float64)


def start_variable(share: torch.Tensor) -> torch.Tensor:
    """The variable of weights that stand a `share` of a step, 0 to 1, above the code below."""
    held = share.clamp(0.01, 0.99)
    return torch.logit((held - _BELOW) / (_ABOVE - _BELOW)).requires_grad_()


def rectified(variable: torch.Tensor) -> torch.Tensor:
    """How far weights stand above the code below, 0 to 1."""
    return (torch.sigmoid(variable) * (_ABOVE - _BELOW) + _BELOW).clamp(0, 1)


def pull_to_ends(ups: Sequence[torch.Tensor], done: float) -> torch.Tensor:
    """How far weights are from 0 and 1, on average; nothing in the first part of the training."""
    if done < _FREE:
        return torch.zeros((), device=ups[0].device)
    power = _LAST_POWER + (_FIRST_POWER - _LAST_POWER) * (1 - (done - _FREE) / (1 - _FREE))
    far = [(1 - (2 * up - 1).abs() ** power).sum() for up in ups]
    return torch.stack(far).sum() / sum(up.numel() for up in ups)
