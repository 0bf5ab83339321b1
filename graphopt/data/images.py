"""Images as a model's input: size, axis order, normalisation and dtype."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from graphopt.data.inputs import InputSpec
from graphopt.data.pixels import Frame, ImageStore
from graphopt.data.preprocess import PREPROCESSES, Preprocess
from graphopt.errors import DataError

__all__ = ["ImageSource"]

# The size nearly every network for photographs was trained at.
_PHOTO = Frame(224, 224, 3)
_ANY = InputSpec("input", None, np.dtype(np.float32))

Order = Literal["NCHW", "NHWC", "NHW", "flat"]


@dataclass(frozen=True)
class _Layout:
    frame: Frame
    order: Order

    def arrange(self, pixels: np.ndarray) -> np.ndarray:
        """Bring (n, height, width, channels) into the order that the input has."""
        if self.order == "NHWC":
            return pixels
        if self.order == "NHW":
            return pixels[..., 0]
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return planes.reshape(len(planes), -1) if self.order == "flat" else planes


@dataclass(frozen=True, eq=False)
class ImageSource:
    """The images of a store, prepared for one input of a model.

    `chosen` is the preprocessing that the user named, `default` the one that the store suggests.
    """

    store: ImageStore
    where: str
    default: Preprocess
    chosen: Preprocess | None = None
    name: str = _ANY.name
    dtype: np.dtype = _ANY.dtype
    layout: _Layout | None = None

    def __len__(self) -> int:
        return len(self.store)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Load, fit and normalise these images."""
        self._check_preprocess()
        layout, preprocess = self._layout(), self._preprocess()
        pixels = self.store.pixels(indices, replace(layout.frame, zoom=preprocess.zoom))
        values = preprocess(pixels, self.store.peak)
        if self.dtype.kind in "iu":
            values = np.rint(values)
        return {self.name: layout.arrange(values).astype(self.dtype, copy=False)}

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The classes of these images, if they are known."""
        return self.store.labels(indices)

    def bind(self, inputs: Sequence[InputSpec]) -> ImageSource:
        """The same images as the model's only input takes them."""
        if len(inputs) != 1:
            raise DataError(
                f"data: {self.where} gives images for one input, the model has {len(inputs)} "
                f"({', '.join(repr(spec.name) for spec in inputs)}); give an .npz or a "
                f"file.py:function with an array for each"
            )
        spec = inputs[0]
        layout = _layout_of(spec, self.store.native, self.where)
        bound = replace(self, name=spec.name, dtype=spec.dtype, layout=layout)
        bound._check_preprocess()
        return bound

    def fingerprint(self, indices: np.ndarray) -> str:
        """The store's fingerprint and how its images are prepared."""
        how = f"{self._layout()} {self._preprocess()} {self.name} {self.dtype}"
        return hashlib.sha256(f"{self.store.fingerprint(indices)} {how}".encode()).hexdigest()

    def _layout(self) -> _Layout:
        return self.layout or _layout_of(_ANY, self.store.native, self.where)

    def _preprocess(self) -> Preprocess:
        if self.dtype.kind in "iu":
            return PREPROCESSES["raw"]
        if self.chosen is not None:
            return self.chosen
        fits = self.default.channels in (1, self._layout().frame.channels)
        return self.default if fits else PREPROCESSES["unit"]

    def _check_preprocess(self) -> None:
        if self.dtype.kind not in "iuf" and self.dtype.name != "bfloat16":
            raise DataError(
                f"data: {self.where} gives numbers, input {self.name!r} takes {self.dtype}; give "
                f"an .npz with that dtype"
            )
        if self.dtype == np.int8:
            raise DataError(
                f"data: pixels 0..255 do not fit input {self.name!r} of int8; give an .npz whose "
                f"values are quantized as the model expects"
            )
        if self.chosen is None:
            return
        if self.dtype.kind in "iu" and not self.chosen.raw:
            raise DataError(
                f"preprocess: input {self.name!r} of {self.dtype} takes pixels 0..255, got "
                f"{self.chosen.name!r}; use 'raw'"
            )
        channels = self._layout().frame.channels
        if self.chosen.channels not in (1, channels):
            raise DataError(
                f"preprocess: {self.chosen.name!r} is for {self.chosen.channels} channels, input "
                f"{self.name!r} has {channels}; use 'unit' or 'mean=a;std=b'"
            )


def _layout_of(spec: InputSpec, native: Frame | None, where: str) -> _Layout:
    """Sizes that the input leaves open come from the images, else from what photographs use."""
    usual = native or _PHOTO
    sizes = spec.sizes()
    if sizes is None:
        return _Layout(usual, "NCHW")
    layout = None
    if len(sizes) == 4:
        layout = _four(sizes, usual)
    elif len(sizes) == 3:
        layout = _Layout(Frame(_or(sizes[1], usual.height), _or(sizes[2], usual.width), 1), "NHW")
    elif len(sizes) == 2:
        layout = _flat(sizes[1], usual)
    if layout is None:
        raise DataError(
            f"data: images of {where} do not fit input {spec.name!r} of shape "
            f"({', '.join('?' if d is None else str(d) for d in sizes)}); it must be "
            f"(N, C, H, W), (N, H, W, C), (N, H, W) or (N, pixels) with 1 or 3 channels"
        )
    return layout


def _four(sizes: Sequence[int | str | None], usual: Frame) -> _Layout | None:
    first, last = sizes[1], sizes[3]
    if last in (1, 3) and first not in (1, 3):
        height, width = _or(sizes[1], usual.height), _or(sizes[2], usual.width)
        return _Layout(Frame(height, width, _or(last, usual.channels)), "NHWC")
    channels = _or(first, usual.channels)
    if channels not in (1, 3):
        return None
    return _Layout(Frame(_or(sizes[2], usual.height), _or(last, usual.width), channels), "NCHW")


def _flat(size: int | str | None, usual: Frame) -> _Layout | None:
    count = _or(size, usual.height * usual.width * usual.channels)
    if count == usual.height * usual.width * usual.channels:
        return _Layout(usual, "flat")
    for channels in (usual.channels, 4 - usual.channels):
        side = math.isqrt(count // channels)
        if side and side * side * channels == count:
            return _Layout(Frame(side, side, channels), "flat")
    return None


def _or(size: int | str | None, default: int) -> int:
    return size if isinstance(size, int) else default
