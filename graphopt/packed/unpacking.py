"""Restore packed models to files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from graphopt.errors import ModelError, TargetError
from graphopt.files import atomic_file
from graphopt.packed.loader import (
    MAGIC,
    PackedError,
    PackedFile,
    read_index,
    restore,
    restored_pieces,
)

__all__ = ["is_packed", "restored", "unpack"]


def is_packed(source: str | Path | bytes) -> bool:
    """Whether a file, or some bytes, begin as packed models do."""
    if isinstance(source, bytes):
        return source.startswith(MAGIC)
    try:
        with Path(source).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def unpack(source: str | Path | bytes, target: str | Path) -> int:
    """Write a packed model to `target` and its external data beside it; return the bytes restored.

    A file appears whole or not at all, the model last, and external data never replace a file that
    is there. Raises ModelError if the packed file is damaged, TargetError if a place cannot be
    written.
    """
    size, target = 0, Path(target)
    with _reading(source) as file:
        for packed in sorted(read_index(file), key=lambda packed: packed.name == ""):
            path = target.parent / packed.name if packed.name else target
            if packed.name and (path.exists() or path == target):
                raise TargetError(f"{path}: external data go there; move what is there away")
            size += _write(file, packed, path)
    return size


@contextmanager
def _reading(source: str | Path | bytes) -> Iterator[BinaryIO]:
    """Open a packed file; what is wrong with it is raised as ModelError."""
    what = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            yield file
    except PackedError as error:
        raise ModelError(f"{what}: {error}") from error
    except OSError as error:
        raise ModelError(f"{what}: cannot be read ({error.strerror}); check the path") from error


def restored(source: str | Path) -> dict[str, bytes]:
    """A packed model's bytes (its name is "") and those of its external data, in memory."""
    with _reading(source):
        return restore(source)


def _write(file: BinaryIO, packed: PackedFile, path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(f"{path}: cannot be written ({error.strerror})") from error
    size = 0
    with atomic_file(path) as out:
        for piece in restored_pieces(file, packed):
            out.write(piece.data)
            size += len(piece)
    return size
