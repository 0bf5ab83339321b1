"""Batch normalisation of few channels that lie last in memory, by the batch's statistics, on a CPU.

PyTorch's kernel works on the channels of one place at a time: fast for 64 of them, slow for 14,
which do not fill its vectors. So places in a row are taken for further channels; what each of
these has is put together to what each channel has.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

__all__ = ["is_narrow", "normalise_narrow"]

_FEW = 48
"""From so many channels on PyTorch's kernel is as fast."""

_LANES = 16
"""Channels that fill vector registers; multiples of them need no help."""

_WIDE = 256
"""Channels of all places that are taken together."""

_aten = torch.ops.aten


def is_narrow(x: torch.Tensor) -> bool:
    """Whether this is the faster way for such an input."""
    if x.dim() != 4 or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    channels = x.shape[1]
    if not 1 < channels < _FEW or channels % _LANES == 0:
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and _places(x) > 0


def _places(x: torch.Tensor) -> int:
    """How many places are taken together; 0 if an image has too few."""
    channels, size = x.shape[1], x.shape[2] * x.shape[3]
    together = _LANES // math.gcd(channels, _LANES)
    if size % together or size == together:
        return 0
    while together * channels < _WIDE and size % (2 * together) == 0 and size > 2 * together:
        together *= 2
    return together


def normalise_narrow(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `torch.nn.functional.batch_norm` gives with training=True, its statistics beside it.

    x (N, C, H, W) as `is_narrow` wants it, weight and bias (C,) float32. Gives the normalised x
    and, not to be differentiated, mean and variance (C,) over N, H and W.
    """
    out, mean, variance = _NarrowNorm.apply(x, weight, bias, epsilon)  # type: ignore[no-untyped-call]
    return out, mean, variance


class _NarrowNorm(torch.autograd.Function):
    """The function with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        epsilon: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        places, channels = _places(x), x.shape[1]
        wide = _together(x, places)
        unused = torch.zeros(2, places * channels)
        means, variances = _aten.batch_norm_update_stats(wide, unused[0], unused[1], 0.0)
        means, variances = means.view(places, channels), variances.view(places, channels)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        of_all = [part.repeat(places) for part in (weight, bias, mean, variance)]
        out, _, _ = _aten.native_batch_norm(wide, *of_all, False, 0.0, epsilon)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.places, ctx.epsilon = places, epsilon
        ctx.mark_non_differentiable(mean, variance)
        return _apart(out, x.shape), mean, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad: torch.Tensor,
        *unused: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        x, weight, mean, variance = ctx.saved_tensors
        places, channels = ctx.places, x.shape[1]
        grad = grad.contiguous(memory_format=torch.channels_last)
        wide, above = _together(x, places), _together(grad, places)
        _, of_weight, of_bias = _aten.native_batch_norm_backward(
            above, wide, *(part.repeat(places) for part in (weight, mean, variance)),
            None, None, False, ctx.epsilon, [False, True, True],
        )  # fmt: skip
        of_weight = of_weight.view(places, channels).sum(0)
        of_bias = of_bias.view(places, channels).sum(0)
        rate = (variance + ctx.epsilon).rsqrt()
        count = x.numel() // channels
        slope = -weight * rate.square() * of_weight / count
        shift = -weight * rate * of_bias / count - slope * mean
        factor, slope, shift = (
            part.repeat(places).to(x.dtype).view(1, -1, 1, 1)
            for part in (weight * rate, slope, shift)
        )
        out = torch.addcmul(shift, above, factor).addcmul_(wide, slope)
        return _apart(out, x.shape), of_weight, of_bias, None


def _together(x: torch.Tensor, places: int) -> torch.Tensor:
    """(N, C, H, W) as (N, places x C, H x W / places, 1), the same memory."""
    count, channels, height, width = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(count, height * width // places, 1, places * channels)
    return flat.permute(0, 3, 1, 2)


def _apart(wide: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    count, channels, height, width = shape
    return wide.permute(0, 2, 3, 1).reshape(count, height, width, channels).permute(0, 3, 1, 2)
