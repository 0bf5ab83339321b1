"""Lowerings of losses, and of draws of random numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.dtypes import element_type
from graphopt.lens.site import Emitted, Row, Site

__all__ = ["ROWS"]

_NOTHING = -(2**63)
"""A class that no label has: nothing is ignored."""


def negative_log_likelihood(
    log_odds: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor | None,
    ignored: int,
    reduction: str,
) -> torch.Tensor:
    """Minus the entries at the labels, weighed by class; ignored labels count nothing."""
    skipped = labels == ignored
    safe = torch.where(skipped, torch.zeros_like(labels), labels).to(torch.int64)
    losses = -log_odds.gather(1, safe.unsqueeze(1)).squeeze(1)
    shares = torch.ones_like(losses) if weight is None else weight[safe]
    shares = torch.where(skipped, torch.zeros_like(shares), shares)
    losses = losses * shares
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / shares.sum()


def _ignored(site: Site) -> int:
    return site.integer("ignore_index", _NOTHING)


def _negative_log_likelihood(site: Site) -> fx.Node:
    args = site.arg(0), site.arg(1), site.optional(2)
    reduction = site.text("reduction", "mean")
    return site.call(negative_log_likelihood, *args, _ignored(site), reduction)


def _cross_entropy(site: Site) -> Emitted:
    log_odds = site.call(functional.log_softmax, site.arg(0), 1)
    args = log_odds, site.arg(1), site.optional(2)
    reduction = site.text("reduction", "mean")
    loss = site.call(negative_log_likelihood, *args, _ignored(site), reduction)
    return (loss, log_odds)[: len(site.node.outputs)]


def _drawn_type(site: Site) -> torch.dtype | None:
    code = site.integer("dtype", 0)
    return site.torch_type(element_type(code)) if code else None


def uniform_like(
    x: torch.Tensor, low: float, high: float, dtype: torch.dtype | None
) -> torch.Tensor:
    drawn = torch.rand(x.shape, device=x.device, dtype=dtype or x.dtype)
    return drawn * (high - low) + low


def _random_uniform_like(site: Site) -> fx.Node:
    bounds = site.number("low", 0.0), site.number("high", 1.0)
    return site.call(uniform_like, site.arg(0), *bounds, _drawn_type(site))


def normal_like(
    x: torch.Tensor, mean: float, scale: float, dtype: torch.dtype | None
) -> torch.Tensor:
    return torch.randn(x.shape, device=x.device, dtype=dtype or x.dtype) * scale + mean


def _random_normal_like(site: Site) -> fx.Node:
    numbers = site.number("mean", 0.0), site.number("scale", 1.0)
    return site.call(normal_like, site.arg(0), *numbers, _drawn_type(site))


def bernoulli(x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return torch.bernoulli(x).to(dtype or x.dtype)


def _bernoulli(site: Site) -> fx.Node:
    return site.call(bernoulli, site.arg(0), _drawn_type(site))


ROWS: Mapping[str, Row] = {
    "Bernoulli": _bernoulli,
    "NegativeLogLikelihoodLoss": _negative_log_likelihood,
    "RandomNormalLike": _random_normal_like,
    "RandomUniformLike": _random_uniform_like,
    "SoftmaxCrossEntropyLoss": _cross_entropy,
}
