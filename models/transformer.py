"""A small vision transformer, its attention written out in single operators."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["vision_transformer"]


def vision_transformer() -> nn.Module:
    """Build a transformer of 6 blocks, width 192 and 3 heads over 64 patches of a 32x32 image."""
    return _VisionTransformer(patch=4, width=192, depth=6)


class _VisionTransformer(nn.Module):
    """Patches and a class token through pre-norm blocks; the head reads the class token."""

    def __init__(self, *, patch: int, width: int, depth: int) -> None:
        super().__init__()
        tokens = (32 // patch) ** 2 + 1
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))
        self.blocks = nn.Sequential(*(_Block(width, heads=width // 64) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        token = self.token.expand(patches.shape[0], -1, -1)
        features = self.blocks(torch.cat([token, patches], 1) + self.position)
        logits: torch.Tensor = self.head(self.norm(features[:, 0]))
        return logits


class _Block(nn.Module):
    """Attention, then a perceptron four times as wide, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features + self.attention(self.norm1(features))
        inside = functional.gelu(self.expand(self.norm2(features)))
        out: torch.Tensor = features + self.project(inside)
        return out


class _Attention(nn.Module):
    """Every token looks at every token, in `heads` independent subspaces."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        tokens, width = features.shape[1:]
        # (batch, tokens, 3 * width) -> three times (batch, heads, tokens, width of a head)
        apart = self.qkv(features).reshape(-1, tokens, 3, self.heads, width // self.heads)
        query, key, value = apart.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.scale, dim=-1)
        mixed: torch.Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed
