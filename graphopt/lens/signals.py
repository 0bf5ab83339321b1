"""Lowerings of Fourier transforms and of the windows that go with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from graphopt.lens.dtypes import element_type
from graphopt.lens.site import Row, Site

__all__ = ["ROWS"]

COSINES: Mapping[str, tuple[float, ...]] = {
    "BlackmanWindow": (0.42, -0.5, 0.08),
    "HammingWindow": (25 / 46, -21 / 46),
    "HannWindow": (0.5, -0.5),
}
"""Weights of the cosines, of frequency 0, 1, ... per window, that a window is a sum of."""


def window(
    size: torch.Tensor, weights: tuple[float, ...], dtype: torch.dtype, *, periodic: bool
) -> torch.Tensor:
    """A sum of cosines over a window's length."""
    count = int(size)
    period = count if periodic else max(count - 1, 1)
    angle = torch.arange(count, dtype=torch.float64, device=size.device) * (2 * math.pi / period)
    waves = torch.stack([w * torch.cos(k * angle) for k, w in enumerate(weights)])
    return waves.sum(0).to(dtype)


def _window(site: Site) -> fx.Node:
    dtype = site.torch_type(element_type(site.integer("output_datatype", 1)))
    periodic = site.flag("periodic", default=True)
    return site.call(window, site.arg(0), COSINES[site.op], dtype, periodic=periodic)


def as_complex(x: torch.Tensor) -> torch.Tensor:
    """The last axis holds a real part, and maybe an imaginary one."""
    if x.shape[-1] == 1:
        return torch.complex(x[..., 0], torch.zeros_like(x[..., 0]))
    return torch.view_as_complex(x.contiguous())


def transform(
    x: torch.Tensor,
    length: Sequence[int] | None,
    axis: int | Sequence[int],
    *,
    inverse: bool,
    onesided: bool,
) -> torch.Tensor:
    """The discrete Fourier transform along an axis, cut or padded to a length first."""
    along = axis if isinstance(axis, int) else axis[0]
    along = along + x.dim() if along < 0 else along
    count = length[0] if length else None
    values = as_complex(x)
    if inverse and onesided:
        full = count if count is not None else 2 * (values.shape[along] - 1)
        real: torch.Tensor = torch.fft.irfft(values, full, along)
        return real.unsqueeze(-1)
    out = (torch.fft.ifft if inverse else torch.fft.fft)(values, count, along)
    if onesided:
        out = out.narrow(along, 0, out.shape[along] // 2 + 1)
    return torch.view_as_real(out)


def _dft(site: Site) -> fx.Node:
    axis = site.integer("axis", 1) if site.opset < 20 else site.sizes(2) or -2
    inverse, onesided = site.flag("inverse"), site.flag("onesided")
    x, length = site.arg(0), site.sizes(1)
    return site.call(transform, x, length, axis, inverse=inverse, onesided=onesided)


def short_time(
    x: torch.Tensor,
    step: Sequence[int],
    shape: torch.Tensor | None,
    length: Sequence[int] | None,
    *,
    onesided: bool,
) -> torch.Tensor:
    """Transforms of frames, each weighed by a window."""
    count = length[0] if length else x.shape[1] if shape is None else shape.shape[0]
    values = x[..., 0] if x.dim() == 3 and x.shape[-1] == 1 else x
    values = as_complex(values) if values.dim() == 3 else values
    frames = values.unfold(1, count, step[0])
    frames = frames if shape is None else frames * shape
    out = torch.fft.fft(frames, dim=-1)
    return torch.view_as_real(out[..., : count // 2 + 1] if onesided else out)


def _stft(site: Site) -> fx.Node:
    args = site.arg(0), site.sizes(1), site.optional(2), site.sizes(3)
    return site.call(short_time, *args, onesided=site.flag("onesided", default=True))


ROWS: Mapping[str, Row] = {
    "BlackmanWindow": _window,
    "DFT": _dft,
    "HammingWindow": _window,
    "HannWindow": _window,
    "STFT": _stft,
}
