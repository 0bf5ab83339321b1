"""Networks whose blocks add to their input: ResNets for small images, and MobileNetV2."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from models.layers import conv_bn, initialised

__all__ = [
    "digits_resnet",
    "mobilenet_v2",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
]

Stages = tuple[tuple[int, int], ...]

MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, channels, blocks, stride of the first block), the strides for 32x32 images."""


def resnet20() -> nn.Module:
    """Build the CIFAR ResNet of depth 20, with shortcuts that have no parameters."""
    return initialised(_ResNet(3, _cifar_stages(3), projection=False))


def resnet32() -> nn.Module:
    """Build the CIFAR ResNet of depth 32, with shortcuts that have no parameters."""
    return initialised(_ResNet(3, _cifar_stages(5), projection=False))


def resnet56() -> nn.Module:
    """Build the CIFAR ResNet of depth 56, with shortcuts that have no parameters."""
    return initialised(_ResNet(3, _cifar_stages(9), projection=False))


def resnet110() -> nn.Module:
    """Build the CIFAR ResNet of depth 110, with shortcuts that have no parameters."""
    return initialised(_ResNet(3, _cifar_stages(18), projection=False))


def digits_resnet() -> nn.Module:
    """Build a ResNet of depth 16 with wider first stages and 1x1 convolutions as shortcuts."""
    stages = ((32, 3), (48, 2), (64, 2))
    return initialised(_ResNet(1, stages, projection=True))


def mobilenet_v2() -> nn.Module:
    """Build MobileNetV2 of width 1.0 for 32x32 images."""
    blocks: list[nn.Module] = [conv_bn(3, 32, nn.ReLU6())]
    width = 32
    for expansion, out, count, first_stride in MOBILENET_STAGES:
        for stride in (first_stride, *[1] * (count - 1)):
            blocks.append(_InvertedResidual(width, out, stride, expansion))
            width = out
    head = conv_bn(width, 1280, nn.ReLU6(), kernel=1)
    return initialised(
        nn.Sequential(
            OrderedDict(
                blocks=nn.Sequential(*blocks),
                head=head,
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(1280, 10),
            )
        )
    )


def _cifar_stages(blocks: int) -> Stages:
    return ((16, blocks), (32, blocks), (64, blocks))


class _ResNet(nn.Module):
    """Stages of (width, blocks), each after the first on images of half the size."""

    def __init__(self, channels: int, stages: Stages, *, projection: bool) -> None:
        super().__init__()
        first, last = stages[0][0], stages[-1][0]
        self.stem = conv_bn(channels, first, nn.ReLU())
        widths = [first, *(width for width, blocks in stages for _ in range(blocks))]
        self.blocks = nn.Sequential(
            *(_BasicBlock(inner, outer, projection=projection) for inner, outer in pairwise(widths))
        )
        self.fc = nn.Linear(last, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.blocks(self.stem(image))
        logits: torch.Tensor = self.fc(features.mean((2, 3)))
        return logits


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; a block that widens also halves the image."""

    def __init__(self, inner: int, outer: int, *, projection: bool) -> None:
        super().__init__()
        stride = 1 if inner == outer else 2
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut = _shortcut(inner, outer, projection=projection)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inside = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(inside)) + self.shortcut(features))


def _shortcut(inner: int, outer: int, *, projection: bool) -> nn.Module:
    if inner == outer:
        return nn.Identity()
    if projection:
        conv = nn.Conv2d(inner, outer, 1, 2, bias=False)
        return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outer)))
    return _PaddedShortcut(outer - inner)


class _PaddedShortcut(nn.Module):
    """Take every second pixel and add channels of zeros: "option A" of the ResNet paper."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        low = self.extra // 2
        return functional.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, low, self.extra - low))


class _InvertedResidual(nn.Module):
    """Expand, filter each channel apart, project; add the input where shapes agree."""

    def __init__(self, inner: int, outer: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inner * expansion
        expand = [] if expansion == 1 else [conv_bn(inner, middle, nn.ReLU6(), kernel=1)]
        self.layers = nn.Sequential(
            *expand,
            conv_bn(middle, middle, nn.ReLU6(), stride=stride, groups=middle),
            conv_bn(middle, outer, nn.Identity(), kernel=1),
        )
        self.residual = stride == 1 and inner == outer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(features)
        return features + out if self.residual else out
