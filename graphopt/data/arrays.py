"""Rows held in arrays: from memory or from an .npz file."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from graphopt.data.inputs import InputSpec, batch_axes, check_arrays
from graphopt.data.wording import reason
from graphopt.errors import DataError

__all__ = ["ArraySource", "file_identity", "read_npz", "without_labels"]

LABELS = "labels"
# What numpy raises for files that are damaged, no archives, pickled, encrypted or too large.
_UNREADABLE = (
    OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ArraySource:
    """One array for each input; `axes` says where the rows of each are, None: passed whole."""

    arrays: Mapping[str, np.ndarray]
    axes: Mapping[str, int | None]
    classes: np.ndarray | None
    where: str
    identity: str | None

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, np.ndarray],
        classes: np.ndarray | None,
        *,
        where: str,
        inputs: Sequence[InputSpec] | None = None,
        identity: str | None = None,
    ) -> ArraySource:
        """Check the arrays against each other, and against the inputs where these are known."""
        if inputs is None:
            axes = {name: 0 if array.ndim else None for name, array in arrays.items()}
        else:
            check_arrays(arrays, inputs, where)
            axes = batch_axes(inputs)
        count = _count(arrays, axes, where)
        labels = None if classes is None else _checked_labels(classes, count, where)
        return cls(dict(arrays), axes, labels, where, identity)

    def __len__(self) -> int:
        return _count(self.arrays, self.axes, self.where)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Copy these rows."""
        return {
            name: array if axis is None else np.take(array, indices, axis=axis)
            for name, array, axis in (
                (name, self.arrays[name], axis) for name, axis in self.axes.items()
            )
        }

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The classes of these rows, if they were given."""
        return None if self.classes is None else self.classes[indices]

    def bind(self, inputs: Sequence[InputSpec]) -> ArraySource:
        """The same arrays, once they are known to fit the inputs."""
        return ArraySource.of(
            self.arrays, self.classes, where=self.where, inputs=inputs, identity=self.identity
        )

    def fingerprint(self, indices: np.ndarray) -> str:
        """What was read from where, or a digest of arrays that came from memory."""
        return self.identity or self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        labelled = {} if self.classes is None else {LABELS: self.classes}
        for group in (self.arrays, labelled):
            for name, array in group.items():
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(_bytes(array))
        return digest.hexdigest()


def _bytes(array: np.ndarray) -> bytes | memoryview:
    if array.dtype.hasobject:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _count(arrays: Mapping[str, np.ndarray], axes: Mapping[str, int | None], where: str) -> int:
    counts: dict[str, int] = {}
    for name, axis in axes.items():
        if axis is not None:
            counts[name] = arrays[name].shape[axis]
    if not counts:
        raise DataError(f"data: {where} has no array with rows; give one that has a batch axis")
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"data: all arrays of {where} must have as many rows, found {found}")
    return next(iter(counts.values()))


def _checked_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"data: labels of {where} must be one integer a row, found shape {labels.shape} of "
            f"{labels.dtype}; give class numbers"
        )
    if len(labels) != count:
        raise DataError(
            f"data: {where} has {count} rows but {len(labels)} labels; give one for each row"
        )
    return labels.astype(np.int64)


def without_labels(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[InputSpec] | None
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Part the array `labels` from the others, unless the model has an input of that name."""
    rest = dict(arrays)
    if any(spec.name == LABELS for spec in inputs or ()):
        return rest, None
    labels = rest.pop(LABELS, None)
    return rest, labels


def file_identity(paths: Sequence[Path]) -> str:
    """Where files are, how long they are and when they were written last."""
    stats = ((path.resolve(), path.stat()) for path in paths)
    lines = (f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_npz(path: Path, inputs: Sequence[InputSpec] | None) -> ArraySource:
    """Read arrays named after the model's inputs, and `labels` if there are any."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"data: {path} is no .npz archive; write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise DataError(
            f"data: {path} cannot be read ({reason(error)}); write plain arrays with numpy.savez"
        ) from error
    arrays, labels = without_labels(found, inputs)
    return ArraySource.of(
        arrays, labels, where=path.name, inputs=inputs, identity=file_identity([path])
    )
