"""Swin transformer (Liu 2021), the tiny one, its attention written out in single operators."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

__all__ = ["swin_t"]

WINDOW = 7


def swin_t() -> nn.Module:
    """Build Swin-T for images of 224x224 and 1000 classes."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(patches=_Patches(96))
    width, side = 96, 56
    for stage, (depth, heads) in enumerate(((2, 3), (2, 6), (6, 12), (2, 24))):
        if stage:
            layers[f"merge{stage}"] = _Merge(width)
            width, side = 2 * width, side // 2
        for block in range(depth):
            shift = WINDOW // 2 if block % 2 and side > WINDOW else 0
            layers[f"stage{stage}_{block}"] = _Block(width, heads, side, shift)
    layers["norm"] = nn.LayerNorm(width)
    layers["mean"] = _Mean()
    layers["head"] = nn.Linear(width, 1000)
    return nn.Sequential(layers)


class _Patches(nn.Module):
    """Patches of 4x4 pixels, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.conv(image).permute(0, 2, 3, 1))
        return out


class _Mean(nn.Module):
    """The mean over rows and columns."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean((1, 2))


class _Merge(nn.Module):
    """Every two by two positions become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        corners = [features[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: torch.Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return out


class _Block(nn.Module):
    """Attention inside windows, then a perceptron, each added to its input."""

    def __init__(self, width: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _WindowAttention(width, heads, side, shift)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features + self.attention(self.norm1(features))
        inside = functional.gelu(self.expand(self.norm2(features)))
        out: torch.Tensor = features + self.project(inside)
        return out


class _WindowAttention(nn.Module):
    """Every position looks at those of its window; windows may be shifted around the border."""

    def __init__(self, width: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.heads, self.side, self.shift = heads, side, shift
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        table = torch.empty((2 * WINDOW - 1) ** 2, heads)
        self.bias = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("places", _places(), persistent=False)
        self.register_buffer("apart", _apart(side, shift) if shift else None, persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.shift:
            features = torch.roll(features, (-self.shift, -self.shift), (1, 2))
        windows = _split(features, self.side)
        count, tokens = windows.shape[:2]
        parts = self.qkv(windows).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0] * self.scale, parts[1], parts[2]
        scores = query @ key.transpose(-2, -1) + self._bias(tokens)
        if self.shift:
            grid = scores.reshape(-1, (self.side // WINDOW) ** 2, self.heads, tokens, tokens)
            scores = (grid + self.get_buffer("apart")).reshape(-1, self.heads, tokens, tokens)
        mixed = torch.softmax(scores, -1) @ value
        out = _joined(self.out(mixed.transpose(1, 2).flatten(2)), self.side)
        return torch.roll(out, (self.shift, self.shift), (1, 2)) if self.shift else out

    def _bias(self, tokens: int) -> torch.Tensor:
        picked = self.bias[self.get_buffer("places")]
        return picked.reshape(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)


def _split(features: torch.Tensor, side: int) -> torch.Tensor:
    """(batch, side, side, width) -> (batch * windows, positions, width)."""
    count, width = side // WINDOW, features.shape[-1]
    grid = features.reshape(-1, count, WINDOW, count, WINDOW, width)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW**2, width)


def _joined(windows: torch.Tensor, side: int) -> torch.Tensor:
    """Undo `_split`."""
    count, width = side // WINDOW, windows.shape[-1]
    grid = windows.reshape(-1, count, count, WINDOW, WINDOW, width)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, width)


def _places() -> torch.Tensor:
    """The row of the table of biases for every pair of positions."""
    rows, columns = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
    row, column = rows.flatten(), columns.flatten()
    down = row[:, None] - row[None] + WINDOW - 1
    right = column[:, None] - column[None] + WINDOW - 1
    return (down * (2 * WINDOW - 1) + right).flatten()


def _apart(side: int, shift: int) -> torch.Tensor:
    """-100 for pairs that are neighbours only because a shift went around the border."""
    edge = torch.zeros(side, dtype=torch.long)
    edge[-WINDOW:-shift], edge[-shift:] = 1, 2
    regions = (3 * edge[:, None] + edge[None]).reshape(1, side, side, 1)
    flat = _split(regions, side).squeeze(-1)
    differs = flat[:, None, :] != flat[:, :, None]
    return (differs * -100.0).reshape(1, -1, 1, WINDOW**2, WINDOW**2)
