"""Small PyTorch modules, one of each way of wiring, for tests of what comes in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

__all__ = ["ARCHITECTURES"]


class Residual(nn.Module):
    """Convolutions beside a shortcut, BatchNorm, Dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        x = functional.relu(x + self.conv(x))
        out: torch.Tensor = self.fc(self.drop(x.mean((2, 3))))
        return out


class Dense(nn.Module):
    """Each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 4 * i) for i in range(3))
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Conv2d(15, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.cat([x, layer(functional.relu(norm(x)))], 1)
        out: torch.Tensor = self.head(self.pool(x))
        return out


class Grouped(nn.Module):
    """Grouped convolutions with a channel shuffle between."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.grouped(self.expand(x)))
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, channels // 3, height, width).transpose(1, 2)
        out: torch.Tensor = self.depthwise(x.reshape(batch, channels, height, width))
        return out


class SqueezeExcite(nn.Module):
    """Channels gated by what the whole image shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.conv(x))
        gate = functional.adaptive_avg_pool2d(x, 1)
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(gate))))
        return x * gate


class SelfAttention(nn.Module):
    """Patches, positions, one block of attention, LayerNorm and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 4, 16) * 0.02)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        seen = self.norm(tokens)
        tokens = tokens + self.attention(seen, seen, seen, need_weights=False)[0]
        out: torch.Tensor = tokens + self.mlp(tokens)
        return out


class Recurrent(nn.Module):
    """Rows of pixels through a bidirectional LSTM and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 6, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 5, batch_first=True)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = x.transpose(1, 2).flatten(2)
        states, _ = self.lstm(rows)
        states, last = self.gru(states)
        return self.fc(last[-1]), states


ARCHITECTURES: Mapping[str, type[nn.Module]] = {
    "attention": SelfAttention,
    "dense": Dense,
    "grouped": Grouped,
    "recurrent": Recurrent,
    "residual": Residual,
    "squeeze-excite": SqueezeExcite,
}
"""All take images (batch, 3, 8, 8)."""
