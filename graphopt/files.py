"""Write files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from graphopt.errors import TargetError

__all__ = ["atomic_file", "check_folder_writable", "is_inside", "is_one_of"]


def is_one_of(path: Path, files: Iterable[Path]) -> bool:
    """Whether a path leads to one of these files, by whatever name."""
    return path.exists() and any(file.exists() and path.samefile(file) for file in files)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, links followed; what can be no path does not."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError:
        return False


def check_folder_writable(folder: Path, name: str) -> None:
    """Raise TargetError, opening with `name`, if nothing can be made in a folder.

    Asked before the work whose result would be lost.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TargetError(
            f"{name}: cannot be written ({error.strerror}); name another place"
        ) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` if the block succeeds, and vanishes if not.

    Raises TargetError for a place that cannot be written, and for a device or a pipe, which a file
    would take the place of.
    """
    if path.exists() and not path.is_file():
        raise TargetError(f"{path}: is no regular file, and would be replaced by one; name a file")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
    except OSError as error:
        raise TargetError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise TargetError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
