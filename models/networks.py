"""Reference networks of the compression literature, in plain torch.

Each is the network that papers count, for images (batch, channels, height, width) of ten classes;
the output is logits. README.md beside this file has the counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from models.layers import initialised
from models.residual import (
    digits_resnet,
    mobilenet_v2,
    resnet20,
    resnet32,
    resnet56,
    resnet110,
)
from models.transformer import vision_transformer

__all__ = [
    "NETWORKS",
    "Reference",
    "densenet40",
    "digits_resnet",
    "lenet5",
    "lenet300",
    "mobilenet_v2",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
    "slimming_mlp",
    "vgg16",
    "vision_transformer",
]

VGG16_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Output channels of the convolutions in order; 0 is a 2x2 max-pool."""


@dataclass(frozen=True)
class Reference:
    """A way to build a network, and the (channels, height, width) of the images it takes."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]


def lenet300() -> nn.Module:
    """Build LeNet-300-100, a perceptron with two hidden layers."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(28 * 28, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10),
        )
    )


def slimming_mlp() -> nn.Module:
    """Build the perceptron of the slimming paper: 784-500-300-10, BatchNorm behind hidden sums."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inner = 28 * 28
    for index, width in enumerate((500, 300), 1):
        layers[f"fc{index}"] = nn.Linear(inner, width, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm1d(width)
        layers[f"relu{index}"] = nn.ReLU()
        inner = width
    layers["fc3"] = nn.Linear(inner, 10)
    return nn.Sequential(layers)


def lenet5() -> nn.Module:
    """Build Caffe's LeNet-5: no padding, max-pools, no activation after the convolutions."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * 4 * 4, 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


def vgg16() -> nn.Module:
    """Build VGG-16 with BatchNorm: 13 convolutions without bias, then two dense layers."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    index = pools = 0
    channels = 3
    for width in VGG16_WIDTHS:
        if width == 0:
            pools += 1
            layers[f"pool{pools}"] = nn.MaxPool2d(2)
            continue
        index += 1
        layers[f"conv{index}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm2d(width)
        layers[f"relu{index}"] = nn.ReLU()
        channels = width
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels, 512)
    layers["bn_fc1"] = nn.BatchNorm1d(512)
    layers["relu_fc1"] = nn.ReLU()
    layers["fc2"] = nn.Linear(512, 10)
    return initialised(nn.Sequential(layers))


def densenet40() -> nn.Module:
    """Build DenseNet-40: three blocks of 12 layers that add 12 channels each, no compression."""
    growth = 12
    width = 2 * growth
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(3, width, 3, padding=1, bias=False)
    for block in (1, 2, 3):
        for layer in range(1, 13):
            layers[f"dense{block}_{layer}"] = _DenseLayer(width, growth)
            width += growth
        if block < 3:
            layers[f"transition{block}"] = _transition(width)
    layers["bn"] = nn.BatchNorm2d(width)
    layers["relu"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(width, 10)
    return initialised(nn.Sequential(layers))


class _DenseLayer(nn.Module):
    """Normalise, activate and convolve everything so far, and append the result to it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([features, self.conv(functional.relu(self.bn(features)))], 1)


def _transition(width: int) -> nn.Module:
    conv = nn.Conv2d(width, width, 1, bias=False)
    return nn.Sequential(
        OrderedDict(bn=nn.BatchNorm2d(width), relu=nn.ReLU(), conv=conv, pool=nn.AvgPool2d(2))
    )


MNIST = (1, 28, 28)
CIFAR = (3, 32, 32)

NETWORKS: Mapping[str, Reference] = {
    "lenet-300-100": Reference(lenet300, MNIST),
    "lenet-5": Reference(lenet5, MNIST),
    "slimming-mlp": Reference(slimming_mlp, MNIST),
    "resnet-20": Reference(resnet20, CIFAR),
    "resnet-32": Reference(resnet32, CIFAR),
    "resnet-56": Reference(resnet56, CIFAR),
    "resnet-110": Reference(resnet110, CIFAR),
    "vgg-16-bn": Reference(vgg16, CIFAR),
    "mobilenet-v2": Reference(mobilenet_v2, CIFAR),
    "densenet-40": Reference(densenet40, CIFAR),
    "vit": Reference(vision_transformer, CIFAR),
    "digits-resnet": Reference(digits_resnet, (1, 32, 32)),
}
