"""Restore packed models to files."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from graphopt.errors import ModelError, TargetError
from graphopt.files import is_inside
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

    All files appear whole, the model last, or none does, and external data never replace a file
    that is there. Raises ModelError if the packed file is damaged, TargetError if a place cannot be
    written, or lies elsewhere by a link.
    """
    target = Path(target)
    with _reading(source) as file:
        files = sorted(read_index(file), key=lambda packed: packed.name == "")
        places = [target.parent / packed.name if packed.name else target for packed in files]
        for place in places[:-1]:
            _check(place, target)
        with _writing(target), ExitStack() as undo:
            _make(target.parent, undo)
            with tempfile.TemporaryDirectory(prefix=".graphopt-", dir=target.parent) as folder:
                written = [Path(folder) / str(number) for number in range(len(files))]
                size = sum(map(partial(_write, file), files, written))
                for path, place in zip(written[:-1], places[:-1], strict=True):
                    _check(place, target)  # again: names can differ and yet be one file's
                    _make(place.parent, undo)
                    path.replace(place)
                    undo.callback(place.unlink)
                written[-1].replace(target)
                undo.pop_all()
    return size


def _check(place: Path, target: Path) -> None:
    """Whether external data may go to a place."""
    if os.path.lexists(place) or place == target:
        raise TargetError(f"{place}: external data go there; move what is there away")
    if not is_inside(place, target.parent):
        raise TargetError(f"{place}: leaves the model's folder by a link; move that away")


def _make(folder: Path, undo: ExitStack) -> None:
    """Make a folder and those that it lies in, all of which `undo` removes."""
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir()
            undo.callback(path.rmdir)


def _write(file: BinaryIO, packed: PackedFile, path: Path) -> int:
    with path.open("wb") as out:
        return sum(out.write(piece.data) for piece in restored_pieces(file, packed))


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename or target
        raise TargetError(f"{path}: cannot be written ({error.strerror})") from error


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
