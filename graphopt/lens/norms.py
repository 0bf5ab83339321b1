"""Lowerings of normalisations; BatchNormalization and Dropout become modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from graphopt.lens.narrow import is_narrow, normalise_narrow
from graphopt.lens.site import Emitted, Row, Site

__all__ = ["ROWS", "BatchNorm", "MaskedDropout"]


class BatchNorm(_BatchNorm):
    """Batch normalisation of tensors of any rank, with momentum counted as torch does."""

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002 (torch's name)
        """Any rank will do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        if self.training and input.numel() == input.shape[1]:
            # One value for each channel has no spread: a batch of one behind a global pool.
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if not (self.training and is_narrow(input)):
            return super().forward(input)
        out, mean, variance = normalise_narrow(input, self.weight, self.bias, self.eps)
        self._follow(mean, variance, input.numel() // input.shape[1])
        return out

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Move the running statistics by those of a batch with `count` values a channel."""
        running, momentum = (self.running_mean, self.running_var), self.momentum
        assert running[0] is not None, "kept by every one of these modules"
        assert running[1] is not None, "as well"
        assert self.num_batches_tracked is not None, "as well"
        assert momentum is not None, "as well"
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            running[0].lerp_(mean, momentum)
            running[1].lerp_(variance * (count / (count - 1)), momentum)


def _batch_norm_module(site: Site) -> BatchNorm | None:
    """The node as a module; None where its parameters are computed by other nodes."""
    found = [site.around.weight(site.name(i)) for i in range(1, 5)]
    scale, shift, average, variance = found
    if not isinstance(scale, nn.Parameter) or not isinstance(shift, nn.Parameter):
        return None
    if average is None or variance is None:
        return None
    epsilon = site.number("epsilon", 1e-5)
    momentum = 1.0 - site.number("momentum", 0.9)
    module = BatchNorm(scale.numel(), eps=epsilon, momentum=momentum)
    module.weight, module.bias = scale, shift
    module.running_mean, module.running_var = average, variance
    return module


def normalise_batch(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    average: torch.Tensor,
    variance: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """Normalise channels (axis 1) by given statistics."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    factor = (scale / torch.sqrt(variance + epsilon)).reshape(shape)
    return ((x - average.reshape(shape)) * factor + shift.reshape(shape)).to(x.dtype)


def batch_statistics(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    average: torch.Tensor,
    variance: torch.Tensor,
    epsilon: float,
    momentum: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise by the batch's own statistics; also the running ones after this batch."""
    axes = [0, *range(2, x.dim())]
    now, spread = x.mean(axes), x.var(axes, correction=0)
    out = normalise_batch(x, scale, shift, now, spread, epsilon)
    return (
        out,
        average * momentum + now * (1 - momentum),
        variance * momentum + spread * (1 - momentum),
    )


def _batch_normalization(site: Site) -> Emitted:
    if site.opset < 9 and not site.flag("spatial", default=True):
        site.refuse("spatial=0 normalises each pixel apart")
    epsilon = site.number("epsilon", 1e-5)
    trains = site.flag("training_mode") if site.opset >= 14 else site.wants(1)
    if trains and site.wants(1):
        momentum = site.number("momentum", 0.9)
        return site.unpack(site.call(batch_statistics, *site.args(), epsilon, momentum), 3)
    module = _batch_norm_module(site)
    if module is None:
        return site.call(normalise_batch, *site.args(), epsilon)
    call = site.module(module, site.arg(0))
    slots = ("weight", "bias", "running_mean", "running_var")
    for slot, position in zip(slots, range(1, 5), strict=True):
        site.around.bind(f"{call.target}.{slot}", site.name(position))
    return call


class MaskedDropout(nn.Module):
    """Dropout that also tells what it kept."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.training or self.p == 0:
            return x, torch.ones_like(x, dtype=torch.bool)
        kept = torch.rand_like(x) >= self.p
        return x * kept / (1 - self.p), kept


def _dropout(site: Site) -> Emitted:
    ratio = site.number("ratio", 0.5) if site.opset < 12 else site.scalar(1)
    if isinstance(ratio, fx.Node):
        site.refuse("its ratio is no constant")
    rate = 0.5 if ratio is None else float(ratio)
    if not site.wants(1):
        return site.module(nn.Dropout(rate), site.arg(0))
    return site.unpack(site.module(MaskedDropout(rate), site.arg(0)), 2)


def _instance_normalization(site: Site) -> fx.Node:
    x, scale, shift = site.args()
    epsilon = site.number("epsilon", 1e-5)
    return site.call(functional.instance_norm, x, None, None, scale, shift, True, 0.0, epsilon)


def layer_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor | None,
    axis: int,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise over all axes from `axis` on; also the mean and the inverse deviation."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    average = wide.mean(axes, keepdim=True)
    inverse = torch.rsqrt(wide.var(axes, correction=0, keepdim=True) + epsilon)
    out = ((wide - average) * inverse).to(x.dtype) * scale
    return out if shift is None else out + shift, average, inverse


def _layer_normalization(site: Site) -> Emitted:
    x, scale, shift = site.arg(0), site.arg(1), site.optional(2)
    axis, epsilon = site.integer("axis", -1), site.number("epsilon", 1e-5)
    shape, rank = site.graph.shape(site.name(1)) or (), site.rank(0)
    fixed = tuple(size for size in shape if isinstance(size, int))
    spans = rank is not None and len(fixed) == (rank - axis if axis >= 0 else -axis)
    same = site.graph.shape(site.name(0))
    spans = spans and same is not None and same[-len(fixed) :] == fixed
    spans = spans and (shift is None or site.graph.shape(site.name(2)) == fixed)
    if spans and not site.wants(1):
        return site.call(functional.layer_norm, x, fixed, scale, shift, epsilon)
    return site.unpack(site.call(layer_norm, x, scale, shift, axis, epsilon), 3)


def group_norm(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, groups: int, epsilon: float
) -> torch.Tensor:
    """Normalise groups of channels; scale and shift are per channel, or per group."""
    if scale.numel() != x.shape[1]:
        each = x.shape[1] // groups
        scale, shift = scale.repeat_interleave(each), shift.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, shift, epsilon)


def _group_normalization(site: Site) -> fx.Node:
    groups, epsilon = site.integer("num_groups", 1), site.number("epsilon", 1e-5)
    return site.call(group_norm, *site.args(), groups, epsilon)


def rms_norm(x: torch.Tensor, scale: torch.Tensor, axis: int, epsilon: float) -> torch.Tensor:
    """Divide by the root of the mean square over all axes from `axis` on."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale


def _rms_normalization(site: Site) -> fx.Node:
    axis, epsilon = site.integer("axis", -1), site.number("epsilon", 1e-5)
    return site.call(rms_norm, site.arg(0), site.arg(1), axis, epsilon)


def local_response(
    x: torch.Tensor, size: int, alpha: float, beta: float, bias: float
) -> torch.Tensor:
    """Divide by a power of the squares summed over neighbouring channels."""
    before = (size - 1) // 2
    squares = functional.pad((x * x).flatten(2).transpose(1, 2), (before, size - 1 - before))
    sums = squares.unfold(2, size, 1).sum(-1).transpose(1, 2).reshape(x.shape)
    return x / (bias + alpha / size * sums) ** beta


def _lrn(site: Site) -> fx.Node:
    numbers = site.number("alpha", 1e-4), site.number("beta", 0.75), site.number("bias", 1.0)
    return site.call(local_response, site.arg(0), site.integer("size", 1), *numbers)


def lp_normalize(x: torch.Tensor, axis: int, p: int) -> torch.Tensor:
    """Divide by the norm along an axis; where that is zero, the result is zero."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def _lp_normalization(site: Site) -> fx.Node:
    return site.call(lp_normalize, site.arg(0), site.integer("axis", -1), site.integer("p", 2))


def standardize(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Zero mean and unit variance over axes."""
    average = x.mean(tuple(axes), keepdim=True)
    spread = (x * x).mean(tuple(axes), keepdim=True) - average * average
    return (x - average) / (torch.sqrt(spread) + 1e-9)


def _mean_variance_normalization(site: Site) -> fx.Node:
    return site.call(standardize, site.arg(0), site.integers("axes") or (0, 2, 3))


ROWS: Mapping[str, Row] = {
    "BatchNormalization": _batch_normalization,
    "Dropout": _dropout,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "RMSNormalization": _rms_normalization,
}
