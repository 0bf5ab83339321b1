"""CIFAR-10 and MNIST, read in the layout their authors publish."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from graphopt.data.arrays import file_identity
from graphopt.data.download import Archive, fetch_gzip, fetch_tar
from graphopt.data.pixels import PixelStore
from graphopt.data.wording import reason
from graphopt.errors import DataError

__all__ = ["cifar10", "data_root", "mnist"]

Part = Literal["train", "test"]

_CIFAR_FOLDER = "cifar-10-batches-bin"
_CIFAR_FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CIFAR_ARCHIVE = Archive(
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    "c32a1d4ab5d03f1284b67883e8d87530",
)
_CIFAR_RECORD = 1 + 3 * 32 * 32

_MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
_MNIST_HOSTS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def data_root() -> Path:
    """Where named data sets lie: $GRAPHOPT_DATA, else the user's cache."""
    given = os.environ.get("GRAPHOPT_DATA")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "graphopt"


def cifar10(part: Part) -> PixelStore:
    """32 x 32 colour images: a byte of class, then red, green and blue planes."""
    root, names = data_root(), _CIFAR_FILES[part]
    folder = _folder_with(root, (_CIFAR_FOLDER, "."), names)
    if folder is None:
        folder = root / _CIFAR_FOLDER
        if folder.exists():
            raise _incomplete(folder, names)
        every = tuple(name for part_names in _CIFAR_FILES.values() for name in part_names)
        fetch_tar(_CIFAR_ARCHIVE, folder, every, "cifar10")
    files = [folder / name for name in names]
    records = [_cifar_records(file) for file in files]
    images = tuple(r[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for r in records)
    return PixelStore(images, tuple(r[:, 0] for r in records), file_identity(files))


def _cifar_records(file: Path) -> np.ndarray:
    size = file.stat().st_size
    if size == 0 or size % _CIFAR_RECORD:
        raise DataError(
            f"data: {file} must hold records of {_CIFAR_RECORD:,} bytes, found {size:,} bytes; "
            f"copy or download it again"
        )
    return np.memmap(file, np.uint8, "r").reshape(-1, _CIFAR_RECORD)


def mnist(part: Part) -> PixelStore:
    """28 x 28 grey digits in IDX files, plain (memory-mapped) or compressed by gzip (read)."""
    root, names = data_root(), _MNIST_FILES[part]
    files = _mnist_files(root, names)
    if files is None:
        for name in names:
            urls = tuple(f"{host}{name}.gz" for host in _MNIST_HOSTS)
            fetch_gzip(Archive(urls, _MNIST_MD5[name]), root / "mnist" / name, "mnist")
        files = [root / "mnist" / name for name in names]
    images, labels = _idx(files[0], 3), _idx(files[1], 1)
    if len(images) != len(labels):
        raise DataError(
            f"data: {files[0]} has {len(images)} images, {files[1].name} {len(labels)} labels; "
            f"copy or download them again"
        )
    return PixelStore((images[..., None],), (labels,), file_identity(files))


def _mnist_files(root: Path, names: Sequence[str]) -> list[Path] | None:
    for ending in ("", ".gz"):
        packed = [name + ending for name in names]
        folder = _folder_with(root, ("mnist", "MNIST/raw"), packed)
        if folder is not None:
            return [folder / name for name in packed]
    return None


def _idx(file: Path, rank: int) -> np.ndarray:
    """An IDX file of bytes: two zeros, 8 for bytes, the rank, big-endian sizes, the data."""
    try:
        content = (
            np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8)
            if file.suffix == ".gz"
            else np.memmap(file, np.uint8, "r")
        )
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"data: {file} cannot be read ({reason(error)}); download it again"
        ) from error
    start = 4 + 4 * rank
    if len(content) < start or content[:4].tolist() != [0, 0, 8, rank]:
        raise DataError(f"data: {file} is no IDX file of rank {rank}; download it again")
    shape = content[4:start].view(">u4").astype(np.int64)
    if len(content) - start != shape.prod():
        raise DataError(
            f"data: {file} must hold {shape.prod():,} bytes after its header, found "
            f"{len(content) - start:,}; download it again"
        )
    return content[start:].reshape(shape)


def _folder_with(root: Path, places: Sequence[str], names: Sequence[str]) -> Path | None:
    folders = (root / place for place in places)
    return next((f for f in folders if all((f / name).is_file() for name in names)), None)


def _incomplete(folder: Path, names: Sequence[str]) -> DataError:
    missing = next(name for name in names if not (folder / name).is_file())
    return DataError(f"data: {folder} has no {missing}; complete the folder or remove it")
