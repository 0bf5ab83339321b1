"""The optimizer, which parameters it decays, and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn, optim

from graphopt.train.plan import Plan, rate_factor

__all__ = ["make_optimizer", "set_rate"]


def make_optimizer(parameters: Iterable[nn.Parameter], plan: Plan) -> optim.Optimizer:
    """SGD with Nesterov's momentum, or AdamW; no weight decay for what has one axis or none."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "adamw":
        return optim.AdamW(groups, lr=plan.rate)
    return optim.SGD(groups, lr=plan.rate, momentum=plan.momentum, nesterov=plan.momentum > 0)


def set_rate(optimizer: optim.Optimizer, plan: Plan, done: float) -> None:
    """Set the learning rate of a training of which a part `done` is over."""
    for group in optimizer.param_groups:
        group["lr"] = plan.rate * rate_factor(plan, done)
