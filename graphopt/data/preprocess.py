"""How pixels become numbers: the named normalisations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from graphopt.data.wording import did_you_mean
from graphopt.errors import DataError

__all__ = ["PREPROCESSES", "Preprocess", "parse_preprocess"]

# Networks for ImageNet are tested on the centre 224 of an image whose shorter side is 256.
IMAGENET_ZOOM = 256 / 224


@dataclass(frozen=True)
class Preprocess:
    """(pixel scaled to [0, 1] - mean) / std, channel by channel; `raw` keeps 0..255.

    Images are first resized until they just cover `zoom` times the wanted size, then the centre
    is cropped.
    """

    name: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    raw: bool = False
    zoom: float = 1.0

    @property
    def channels(self) -> int:
        """How many channels the values are for; 1 serves any number."""
        return max(len(self.mean), len(self.std))

    def __call__(self, pixels: np.ndarray, peak: float) -> np.ndarray:
        """Normalise (..., channel) pixels in 0..peak, as float32."""
        values = pixels.astype(np.float32)
        if self.raw:
            if peak != 255:
                values *= np.float32(255 / peak)
            return values
        values /= np.float32(peak)
        if any(self.mean):
            values -= np.array(self.mean, np.float32)
        if any(std != 1 for std in self.std):
            values /= np.array(self.std, np.float32)
        return values


PREPROCESSES: Mapping[str, Preprocess] = MappingProxyType(
    {
        "cifar10": Preprocess("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "imagenet": Preprocess(
            "imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), zoom=IMAGENET_ZOOM
        ),
        "raw": Preprocess("raw", raw=True),
        "unit": Preprocess("unit"),
    }
)

_CUSTOM = re.compile(r"mean=(?P<mean>[^;=]+);std=(?P<std>[^;=]+)")


def parse_preprocess(text: str) -> Preprocess:
    """Read `imagenet`, `cifar10`, `unit`, `raw` or `mean=a,b,c;std=d,e,f` (1 or 3 values each)."""
    if text in PREPROCESSES:
        return PREPROCESSES[text]
    match = _CUSTOM.fullmatch(text.replace(" ", ""))
    if match is None:
        raise DataError(
            f"preprocess: {text!r} is neither {', '.join(PREPROCESSES)} nor "
            f"'mean=a,b,c;std=d,e,f'{did_you_mean(text, PREPROCESSES)}"
        )
    mean, std = (_numbers(match[part], text) for part in ("mean", "std"))
    if not all(value > 0 for value in std):
        raise DataError(f"preprocess: std must be above 0, got {match['std']!r} in {text!r}")
    return Preprocess(text, mean, std, zoom=IMAGENET_ZOOM)


def _numbers(part: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in part.split(","))
    except ValueError as error:
        raise DataError(
            f"preprocess: mean and std are numbers joined by commas, got {part!r} in {text!r}"
        ) from error
    if len(values) not in (1, 3) or not np.isfinite(values).all():
        raise DataError(
            f"preprocess: mean and std have 1 or 3 finite values each, got {part!r} in {text!r}"
        )
    return values
