"""A folder of image files as a store of images; class folders give labels."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from graphopt.data.pixels import Frame
from graphopt.data.wording import reason
from graphopt.errors import DataError

__all__ = ["FolderStore"]

_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_PARTS = frozenset({"test", "train", "val", "valid", "validation"})


@dataclass(frozen=True, eq=False)
class FolderStore:
    """Image files in the order of their names, decoded when they are asked for."""

    files: tuple[Path, ...]
    classes: np.ndarray | None
    native: Frame | None = None
    peak: float = 255.0

    @classmethod
    def scan(cls, folder: Path) -> FolderStore:
        """Find the images of a folder; if it holds folders, their sorted names are the classes."""
        try:
            entries = sorted(entry for entry in folder.iterdir() if not _hidden(entry.name))
        except OSError as error:
            raise DataError(f"data: {folder} cannot be read ({error.strerror})") from error
        folders = [entry for entry in entries if entry.is_dir()]
        loose = _images(folder, [entry.name for entry in entries if entry.is_file()])
        found = [_walk(entry) for entry in folders]
        if loose and any(found):
            raise DataError(
                f"data: {folder} holds both images ({loose[0].name}) and folders of images; keep "
                f"images alone, or one folder for each class"
            )
        if folders and {entry.name.lower() for entry in folders} <= _PARTS:
            raise DataError(
                f"data: {folder} holds {', '.join(e.name for e in folders)}, which are parts, not "
                f"classes; give one of them, such as {folders[0]}"
            )
        if loose or not any(found):
            return cls(tuple(loose), None)
        labels = np.repeat(np.arange(len(found)), [len(files) for files in found])
        return cls(tuple(file for files in found for file in files), labels)

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, indices: np.ndarray, frame: Frame) -> np.ndarray:
        """Decode these images, resize them to cover the frame, and crop the centre."""
        return np.stack([_load(self.files[index], frame) for index in indices])

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The classes of these images, if they lie in class folders."""
        return None if self.classes is None else self.classes[indices]

    def fingerprint(self, indices: np.ndarray) -> str:
        """Names, lengths and times of these files, and their classes."""
        digest = hashlib.sha256()
        for index in indices:
            file = self.files[index]
            stat = _stat(file)
            label = None if self.classes is None else self.classes[index]
            digest.update(f"{file.absolute()} {stat.st_size} {stat.st_mtime_ns} {label}\n".encode())
        return digest.hexdigest()


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise DataError(f"data: {file} cannot be read ({error.strerror}); remove it") from error


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _images(folder: Path, names: list[str]) -> list[Path]:
    return [
        folder / name
        for name in sorted(names)
        if Path(name).suffix.lower() in _SUFFIXES and not _hidden(name)
    ]


def _walk(folder: Path) -> list[Path]:
    found: list[Path] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        found += _images(Path(here), names)
    return found


def _load(file: Path, frame: Frame) -> np.ndarray:
    """(height, width, channels) bytes."""
    try:
        with warnings.catch_warnings():
            # Of damaged metadata; where pixels are damaged too, Pillow raises.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(file) as image:
                fitted = _fit(_in_mode(image, "L" if frame.channels == 1 else "RGB"), frame)
    # Pillow raises SyntaxError and ValueError for some damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"data: {file} cannot be read as an image ({reason(error)}); remove or replace it"
        ) from error
    pixels = np.asarray(fitted)
    return pixels[..., None] if frame.channels == 1 else pixels


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8 instead of scaling them.
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    return image.convert(mode)


def _fit(image: Image.Image, frame: Frame) -> Image.Image:
    if image.size == (frame.width, frame.height):
        return image
    longest = 1 + max(frame.width, frame.height) // min(frame.width, frame.height)
    image = _without_ends(image, ratio=8 * longest)
    width, height = image.size
    cover_width, cover_height = round(frame.width * frame.zoom), round(frame.height * frame.zoom)
    if width * cover_height >= height * cover_width:
        size = (max(cover_height * width // height, frame.width), cover_height)
    else:
        size = (cover_width, max(cover_width * height // width, frame.height))
    resized = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - frame.width) / 2), round((size[1] - frame.height) / 2)
    return resized.crop((left, top, left + frame.width, top + frame.height))


def _without_ends(image: Image.Image, ratio: int) -> Image.Image:
    """The middle of a very long image: resized as a whole, it might fill the memory."""
    width, height = image.size
    wide, high = min(width, ratio * height), min(height, ratio * width)
    if (wide, high) == image.size:
        return image
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))
