"""Architectures as torchvision has them, in plain torch, for tools that need modules.

Only those that a file is no substitute for: a tool for PyTorch modules does better with the module
(`vit-b-16`, whose heads it must be told), fails on the module itself (`shufflenet-v2`, `swin-t`),
or there is no file (`ssdlite`). All take images (batch, 3, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from graphopt import trace
from models.detector import ssdlite
from models.shuffle import shufflenet_v2
from models.swin import swin_t
from models.transformer import Attention, vit_b_16

__all__ = ["ARCHITECTURES", "Architecture", "build", "traced"]


@dataclass(frozen=True)
class Architecture:
    """A way to build a network, the shape of its images, and its published number of parameters.

    `outputs` are the names of the layers that make what the network returns.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    parameters: int
    ends: tuple[str, ...]

    def outputs(self, module: nn.Module) -> list[nn.Module]:
        """The layers that make what the network returns."""
        return [layer for name, layer in module.named_modules() if name.endswith(self.ends)]

    def heads(self, module: nn.Module) -> dict[nn.Module, int]:
        """The layers whose outputs are split into heads, and into how many."""
        return {part.qkv: part.heads for part in module.modules() if isinstance(part, Attention)}


ARCHITECTURES: Mapping[str, Architecture] = {
    "shufflenet-v2": Architecture(shufflenet_v2, (3, 224, 224), 2_278_604, ("fc",)),
    "ssdlite": Architecture(ssdlite, (3, 320, 320), 3_440_060, ("predict",)),
    "swin-t": Architecture(swin_t, (3, 224, 224), 28_288_354, ("head",)),
    "vit-b-16": Architecture(vit_b_16, (3, 224, 224), 86_567_656, ("head",)),
}


def build(name: str) -> nn.Module:
    """A network with weights drawn from seed 0, in evaluation mode."""
    torch.manual_seed(0)
    return ARCHITECTURES[name].build().eval()


def traced(name: str, folder: Path) -> Path:
    """Write a network as an ONNX file, its batch open."""
    path = folder / f"{name}.onnx"
    trace(build(name), torch.randn(1, *ARCHITECTURES[name].shape)).save(path)
    return path
