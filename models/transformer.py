"""Vision transformers, their attention written out in single operators."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Attention", "vision_transformer", "vit_b_16"]


def vision_transformer() -> nn.Module:
    """Build a transformer of 6 blocks, width 192 and 3 heads over 64 patches of a 32x32 image."""
    return _VisionTransformer(tokens=64, patch=4, width=192, depth=6, classes=10)


def vit_b_16() -> nn.Module:
    """Build ViT-B/16 (Dosovitskiy 2021): 12 blocks, 12 heads, images of 224x224, 1000 classes."""
    return _VisionTransformer(tokens=196, patch=16, width=768, depth=12, classes=1000)


class _VisionTransformer(nn.Module):
    """Patches and a class token through pre-norm blocks; the head reads the class token."""

    def __init__(self, *, tokens: int, patch: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        places = torch.empty(1, tokens + 1, width)
        self.position = nn.Parameter(nn.init.trunc_normal_(places, std=0.02))
        self.blocks = nn.Sequential(*(_Block(width, heads=width // 64) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

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
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features + self.attention(self.norm1(features))
        inside = functional.gelu(self.expand(self.norm2(features)))
        out: torch.Tensor = features + self.project(inside)
        return out


class Attention(nn.Module):
    """Every token looks at every token, in `heads` independent subspaces."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        tokens = features.shape[1]
        # (batch, tokens, 3 * width) -> three times (batch, heads, tokens, width of a head)
        apart = self.qkv(features).reshape(features.shape[0], tokens, 3, self.heads, -1)
        query, key, value = apart.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.scale, dim=-1)
        mixed: torch.Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed
