"""Lowerings of Attention and of rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.site import Emitted, Row, Site

__all__ = ["ROWS"]


@dataclass(frozen=True)
class Heads:
    """How an Attention node splits and weighs its operands."""

    query: int
    key: int
    scale: float | None
    softcap: float
    causal: bool
    left: int
    right: int
    """How far back and ahead a query sees, -1 for any distance."""
    stage: int
    """Which stage of the scores is the fourth output."""
    scores: bool
    """Whether anybody reads the scores."""


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, time, heads * size) as (batch, heads, time, size)."""
    if x.dim() == 4:
        return x
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    past_key: torch.Tensor | None,
    past_value: torch.Tensor | None,
    lengths: torch.Tensor | None,
    *,
    how: Heads,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Attention over the keys so far; gives (out, keys, values, scores)."""
    flat = query.dim() == 3
    q = split_heads(query, how.query)
    k, v = split_heads(key, how.key), split_heads(value, how.key)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    groups = q.shape[1] // k.shape[1]
    wide_k, wide_v = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (k, v))
    offset = 0 if past_key is None else past_key.shape[2]
    bias = _bias(q, wide_k, mask, lengths, offset, how)
    if not how.scores and not how.softcap and bias is None:
        out = functional.scaled_dot_product_attention(q, wide_k, wide_v, scale=how.scale)
        scores = None
    else:
        out, scores = _explicit(q, wide_k, wide_v, bias, how)
    if flat:
        out = out.transpose(1, 2).flatten(2)
    return out, k, v, scores


def _bias(
    q: torch.Tensor,
    k: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor | None,
    offset: int,
    how: Heads,
) -> torch.Tensor | None:
    """What is added to the scores; minus infinity where a key is not seen."""
    rows, columns = q.shape[2], k.shape[2]
    bias = None
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
        missing = columns - mask.shape[-1]
        bias = functional.pad(mask, (0, missing), value=-math.inf) if missing > 0 else mask
        bias = bias.to(q.dtype)
    place = torch.arange(columns, device=q.device)
    row = torch.arange(rows, device=q.device).unsqueeze(1) + offset
    if lengths is not None:
        ends = lengths.reshape(-1, 1, 1, 1)
        seen = place < ends
        bias = _hide(bias, seen, q)
        row = row - offset + (ends - rows)
    if how.causal:
        bias = _hide(bias, place <= row, q)
    if how.left >= 0:
        bias = _hide(bias, place >= row - how.left, q)
    if how.right >= 0:
        bias = _hide(bias, place <= row + how.right, q)
    return bias


def _hide(bias: torch.Tensor | None, seen: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    more = torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, -math.inf)
    return more if bias is None else bias + more


def _explicit(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, how: Heads
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention step by step, for what torch's kernel does not show or do."""
    scale = 1 / math.sqrt(q.shape[-1]) if how.scale is None else how.scale
    stages = [torch.matmul(q * math.sqrt(scale), k.transpose(2, 3) * math.sqrt(scale))]
    capped = stages[0]
    if how.softcap:
        capped = how.softcap * torch.tanh(capped / how.softcap)
    masked = capped if bias is None else capped + bias
    weights = torch.softmax(masked, -1)
    hidden = torch.isneginf(masked).all(-1, keepdim=True)
    weights = torch.where(hidden, torch.zeros_like(weights), weights)
    stages += [capped, masked, weights]
    return torch.matmul(weights, v), stages[how.stage]


def _attention(site: Site) -> Emitted:
    how = Heads(
        site.integer("q_num_heads", 0),
        site.integer("kv_num_heads", 0),
        site.number("scale", 0.0) if "scale" in site.attributes else None,
        site.number("softcap", 0.0),
        site.flag("is_causal"),
        site.integer("left_window_size", -1),
        site.integer("right_window_size", -1),
        site.integer("qk_matmul_output_mode", 0),
        site.wants(3),
    )
    made = site.bound(attend, *(site.optional(position) for position in range(7)), how=how)
    return site.unpack(made, 4)


def rotate(
    x: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    positions: torch.Tensor | None,
    heads: int,
    width: int,
    *,
    interleaved: bool,
) -> torch.Tensor:
    """Turn pairs of features by angles that grow with the position."""
    steps = split_heads(x, heads)
    size = width or steps.shape[-1]
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    cosines, sines = cosines[..., : size // 2].unsqueeze(1), sines[..., : size // 2].unsqueeze(1)
    turned, rest = steps[..., :size], steps[..., size:]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = a * cosines - b * sines, a * sines + b * cosines
    if interleaved:
        out = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        out = torch.cat([real, imaginary], -1)
    out = torch.cat([out, rest], -1)
    return out.transpose(1, 2).reshape(x.shape) if x.dim() == 3 else out


def _rotary_embedding(site: Site) -> fx.Node:
    args = site.arg(0), site.arg(1), site.arg(2), site.optional(3)
    numbers = site.integer("num_heads", 0), site.integer("rotary_embedding_dim", 0)
    return site.call(rotate, *args, *numbers, interleaved=site.flag("interleaved"))


ROWS: Mapping[str, Row] = {"Attention": _attention, "RotaryEmbedding": _rotary_embedding}
