"""SSDLite (Sandler 2018) on MobileNetV3-Large with a reduced tail, without its postprocessing."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["ssdlite"]

CLASSES, ANCHORS = 91, 6

# kernel, expanded, out, squeeze and excite?, hard swish?, stride
BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 80, True, True, 2),
    (5, 480, 80, True, True, 1),
    (5, 480, 80, True, True, 1),
)
FIRST_LEVEL = 12  # the block whose expanded channels are the first level that is looked at


def ssdlite() -> nn.Module:
    """Build SSDLite for images of 320x320: scores (batch, boxes, classes) and boxes of 4."""
    return _Detector()


class _Detector(nn.Module):
    """Levels of features, ever coarser; each predicts classes and boxes at every position."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv(3, 16, nn.Hardswish(), kernel=3, stride=2)]
        width = 16
        for kernel, expanded, outer, excited, hard, stride in BLOCKS:
            blocks.append(_Block(width, expanded, outer, kernel, stride, excited, hard))
            width = outer
        self.blocks = nn.ModuleList(blocks)
        self.last = _conv(width, 480, nn.Hardswish())
        self.extra = nn.ModuleList(
            _extra(inner, outer)
            for inner, outer in ((480, 512), (512, 256), (256, 256), (256, 128))
        )
        levels = (672, 480, 512, 256, 256, 128)
        self.classes = nn.ModuleList(_Predictor(inner, CLASSES) for inner in levels)
        self.boxes = nn.ModuleList(_Predictor(inner, 4) for inner in levels)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels = self._levels(image)
        scores = [head(level) for head, level in zip(self.classes, levels, strict=True)]
        boxes = [head(level) for head, level in zip(self.boxes, levels, strict=True)]
        return torch.cat(scores, 1), torch.cat(boxes, 1)

    def _levels(self, image: torch.Tensor) -> list[torch.Tensor]:
        for block in self.blocks[: FIRST_LEVEL + 1]:
            image = block(image)
        first = self.blocks[FIRST_LEVEL + 1]
        assert isinstance(first, _Block), "the first level is inside a block"
        levels = [first.expand(image)]
        image = first.shrink(levels[0])
        for block in self.blocks[FIRST_LEVEL + 2 :]:
            image = block(image)
        levels.append(self.last(image))
        for extra in self.extra:
            levels.append(extra(levels[-1]))
        return levels


def _conv(
    inner: int,
    outer: int,
    activation: nn.Module,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer, 1e-3, 0.03), activation)


class _Block(nn.Module):
    """Expand, convolve each channel alone, excite, shrink; added to the input where that fits."""

    def __init__(
        self,
        inner: int,
        expanded: int,
        outer: int,
        kernel: int,
        stride: int,
        excited: bool,
        hard: bool,
    ) -> None:
        super().__init__()

        def activation() -> nn.Module:
            return nn.Hardswish() if hard else nn.ReLU()

        self.adds = stride == 1 and inner == outer
        self.expand = _conv(inner, expanded, activation()) if expanded != inner else nn.Sequential()
        alone = _conv(
            expanded, expanded, activation(), kernel=kernel, stride=stride, groups=expanded
        )
        excite = _Excite(expanded) if excited else nn.Sequential()
        self.shrink = nn.Sequential(alone, excite, _conv(expanded, outer, nn.Sequential()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.shrink(self.expand(image))
        return image + out if self.adds else out


class _Excite(nn.Module):
    """Channels gated by what the whole image shows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(8, (width // 4 + 4) // 8 * 8)
        inner += 8 if inner < 0.9 * (width // 4) else 0
        self.squeeze = nn.Conv2d(width, inner, 1)
        self.excite = nn.Conv2d(inner, width, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled = functional.adaptive_avg_pool2d(image, 1)
        gate = self.excite(functional.relu(self.squeeze(pooled)))
        out: torch.Tensor = image * functional.hardsigmoid(gate)
        return out


def _extra(inner: int, outer: int) -> nn.Sequential:
    half = outer // 2
    return nn.Sequential(
        _conv(inner, half, nn.ReLU6()),
        _conv(half, half, nn.ReLU6(), kernel=3, stride=2, groups=half),
        _conv(half, outer, nn.ReLU6()),
    )


class _Predictor(nn.Module):
    """So many numbers for each anchor at each position."""

    def __init__(self, inner: int, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.alone = _conv(inner, inner, nn.ReLU6(), kernel=3, groups=inner)
        self.predict = nn.Conv2d(inner, ANCHORS * numbers, 1)

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        made = self.predict(self.alone(level))
        batch, _, height, width = made.shape
        apart = made.reshape(batch, ANCHORS, self.numbers, height, width).permute(0, 3, 4, 1, 2)
        out: torch.Tensor = apart.reshape(batch, -1, self.numbers)
        return out
