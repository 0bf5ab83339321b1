"""ShuffleNetV2 (Ma 2018) at width 1.0."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

__all__ = ["shufflenet_v2"]


def shufflenet_v2() -> nn.Module:
    """Build ShuffleNetV2 x1.0 for images of 224x224 and 1000 classes."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = _conv(3, 24, kernel=3, stride=2)
    layers["pool"] = nn.MaxPool2d(3, 2, 1)
    width = 24
    for stage, (blocks, wider) in enumerate(((4, 116), (8, 232), (4, 464)), 2):
        for block in range(blocks):
            layers[f"stage{stage}_{block}"] = _Unit(width, wider, stride=1 if block else 2)
            width = wider
    layers["last"] = _conv(width, 1024)
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(1024, 1000)
    return nn.Sequential(layers)


def _conv(inner: int, outer: int, *, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU())


def _depthwise(width: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class _Unit(nn.Module):
    """Two branches, of which one is the input itself where the size stays; then a shuffle."""

    def __init__(self, inner: int, outer: int, *, stride: int) -> None:
        super().__init__()
        half = outer // 2
        self.stride = stride
        source = inner if stride > 1 else half
        self.aside = nn.Sequential(_depthwise(inner, stride), _conv(inner, half))
        if stride == 1:
            self.aside = nn.Sequential()
        self.main = nn.Sequential(_conv(source, half), _depthwise(half, stride), _conv(half, half))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        left, right = (image, image) if self.stride > 1 else image.chunk(2, 1)
        joined = torch.cat([self.aside(left), self.main(right)], 1)
        batch, channels, height, width = joined.shape
        pairs = joined.reshape(batch, 2, channels // 2, height, width)
        return pairs.transpose(1, 2).reshape(batch, channels, height, width)
