"""Pieces that several reference networks are made of."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

__all__ = ["conv_bn", "initialised"]


def conv_bn(
    inner: int,
    outer: int,
    activation: nn.Module,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolve without changing the image's size (but for the stride), normalise, activate."""
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outer), activation=activation))


def initialised(network: nn.Module) -> nn.Module:
    """Draw convolution weights so that the variance of activations survives depth."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
