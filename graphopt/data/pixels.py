"""Images before normalisation: what a store of them offers, and the one held in arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

__all__ = ["Frame", "ImageStore", "PixelStore", "gray", "resize_all"]


@dataclass(frozen=True)
class Frame:
    """The size a network wants its images in; `zoom` as in Preprocess."""

    height: int
    width: int
    channels: int
    zoom: float = 1.0


class ImageStore(Protocol):
    """Labelled images of one or of many sizes."""

    @property
    def native(self) -> Frame | None:
        """Size and channels that all images have, None where they differ."""
        ...

    @property
    def peak(self) -> float:
        """The value of white."""
        ...

    def __len__(self) -> int: ...

    def pixels(self, indices: np.ndarray, frame: Frame) -> np.ndarray:
        """These images, (n, height, width, channels), values in 0..peak."""
        ...

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The classes of these images, if they are known."""
        ...

    def fingerprint(self, indices: np.ndarray) -> str:
        """A text that changes when these images may have changed."""
        ...


@dataclass(frozen=True, eq=False)
class PixelStore:
    """Images of one size in parts that may be memory-mapped, (n, height, width, channels) each.

    With `blocky`, whole multiples of the size are reached by repeating pixels.
    """

    images: tuple[np.ndarray, ...]
    classes: tuple[np.ndarray, ...]
    identity: str
    peak: float = 255.0
    blocky: bool = False

    @property
    def native(self) -> Frame:
        """The size of all images."""
        return Frame(*self.images[0].shape[1:])

    def __len__(self) -> int:
        return sum(len(part) for part in self.images)

    def pixels(self, indices: np.ndarray, frame: Frame) -> np.ndarray:
        """Gather these images, then fit channels and size; all of an image is kept."""
        found = _gather(self.images, indices)
        if found.shape[3] == 3 and frame.channels == 1:
            found = gray(found)
        height, width = found.shape[1:3]
        if self.blocky and frame.height % height == 0 and frame.width % width == 0:
            times = (frame.height // height, frame.width // width)
            found = found.repeat(times[0], axis=1).repeat(times[1], axis=2)
        elif (frame.height, frame.width) != (height, width):
            found = resize_all(found, frame.height, frame.width)
        return found.repeat(frame.channels // found.shape[3], axis=3)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """The classes of these images."""
        return _gather(self.classes, indices).astype(np.int64)

    def fingerprint(self, indices: np.ndarray) -> str:
        """What was read from where."""
        return self.identity


def _gather(parts: tuple[np.ndarray, ...], indices: np.ndarray) -> np.ndarray:
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    owner = np.searchsorted(starts, indices, side="right") - 1
    found = np.empty((len(indices), *parts[0].shape[1:]), parts[0].dtype)
    for number in np.unique(owner):
        here = owner == number
        found[here] = parts[number][indices[here] - starts[number]]
    return found


def gray(pixels: np.ndarray) -> np.ndarray:
    """(n, height, width, 3) bytes as luma, one channel."""
    return _each(pixels, lambda image: image.convert("L"))


def resize_all(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (n, height, width, 1 or 3) bytes, or floats of one channel, bilinearly."""
    size = (width, height)
    return _each(pixels, lambda image: image.resize(size, Image.Resampling.BILINEAR))


def _each(pixels: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    planes = pixels[..., 0] if pixels.shape[3] == 1 else pixels
    changed = np.stack([np.asarray(change(Image.fromarray(plane))) for plane in planes])
    return changed[..., None] if changed.ndim == 3 else changed
