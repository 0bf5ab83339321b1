"""CIFAR-10 and MNIST in their official layout, found or fetched, whole or damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from graphopt import data
from graphopt.data import InputSpec, official
from graphopt.data.download import Archive, fetch_gzip, fetch_tar
from graphopt.errors import DataError

RNG = np.random.default_rng(0)
CIFAR = RNG.integers(0, 256, (6, 4, 3, 32, 32), np.uint8)
DIGITS = RNG.integers(0, 256, (9, 28, 28), np.uint8)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHOPT_DATA", str(tmp_path))
    return tmp_path


def write_cifar(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    for number, name in enumerate(names):
        rows = CIFAR[number].reshape(4, -1)
        labels = np.full((4, 1), number, np.uint8)
        (folder / name).write_bytes(np.hstack([labels, rows]).tobytes())


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_mnist(folder: Path, *, packed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(9, dtype=np.uint8)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", DIGITS), ("labels-idx1", labels)):
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))


def raw(name: str, shape: tuple[int | str, ...]) -> tuple[np.ndarray, np.ndarray]:
    dataset = data.open(name, [InputSpec("x", shape, np.dtype(np.uint8))])
    assert dataset.labels is not None
    return np.concatenate([batch["x"] for batch in dataset.batches(5)]), dataset.labels


@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "."])
def test_cifar10(root: Path, folder: str) -> None:
    write_cifar(root / folder)
    images, labels = raw("cifar10", ("N", 3, 32, 32))
    np.testing.assert_array_equal(images, CIFAR[:5].reshape(-1, 3, 32, 32))
    assert labels.tolist() == np.repeat(range(5), 4).tolist()
    images, labels = raw("cifar10:test", ("N", 32, 32, 3))
    np.testing.assert_array_equal(images, CIFAR[5].transpose(0, 2, 3, 1))
    assert set(labels) == {5}


def test_cifar10_has_its_own_normalisation(root: Path) -> None:
    write_cifar(root)
    batch = next(data.open("cifar10").batches(1))["input"]
    expected = (CIFAR[0, 0, 1] / 255 - 0.4822) / 0.2435
    np.testing.assert_allclose(batch[0, 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "packed"), [("mnist", False), ("MNIST/raw", False), ("mnist", True)]
)
def test_mnist(root: Path, folder: str, packed: bool) -> None:
    write_mnist(root / folder, packed=packed)
    images, labels = raw("mnist:test[:7]", ("N", 1, 28, 28))
    np.testing.assert_array_equal(images[:, 0], DIGITS[:7])
    assert labels.tolist() == list(range(7))
    assert raw("mnist", ("N", 784))[0].shape == (9, 784)


def test_plain_files_are_memory_mapped(root: Path) -> None:
    write_cifar(root)
    write_mnist(root / "mnist")
    for store in (official.cifar10("train"), official.mnist("test")):
        assert all(isinstance(part, np.memmap) for part in store.images)


def test_damaged_cifar10(root: Path) -> None:
    write_cifar(root)
    (root / "data_batch_3.bin").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match=r"data_batch_3\.bin must hold records of 3,073 bytes"):
        data.open("cifar10")


def test_an_incomplete_folder_is_not_overwritten(root: Path) -> None:
    write_cifar(root / "cifar-10-batches-bin")
    (root / "cifar-10-batches-bin/test_batch.bin").unlink()
    assert len(data.open("cifar10:train")) == 20
    with pytest.raises(DataError, match=r"has no test_batch\.bin"):
        data.open("cifar10:test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read|is no IDX"),
        (b"text", "is no IDX file of rank 3"),
        (idx(DIGITS)[:-5], "must hold 7,056 bytes"),
        (idx(DIGITS[:5]), "has 5 images, .* 9 labels"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_mnist(root: Path, content: bytes, message: str, packed: bool) -> None:
    write_mnist(root / "mnist", packed=packed)
    path = root / f"mnist/train-images-idx3-ubyte{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=message):
        data.open("mnist")


def test_a_gzip_file_that_is_none(root: Path) -> None:
    write_mnist(root / "mnist", packed=True)
    (root / "mnist/train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bbroken")
    with pytest.raises(DataError, match="cannot be read"):
        data.open("mnist")


def published(path: Path, content: bytes) -> Archive:
    path.write_bytes(content)
    return Archive((path.as_uri(),), hashlib.md5(content).hexdigest())


def tar_of(files: dict[str, bytes], *, link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return buffer.getvalue()


def test_a_tar_file_is_fetched_whole_and_nothing_else_taken(tmp_path: Path) -> None:
    source = tmp_path / "source.tar.gz"
    archive = published(source, tar_of({"set/a.bin": b"A", "../evil": b"E", "set/readme": b"R"}))
    fetch_tar(archive, tmp_path / "cache/set", ["a.bin"], "set")
    assert [p.name for p in (tmp_path / "cache").rglob("*")] == ["set", "a.bin"]
    assert not (tmp_path / "evil").exists()


def test_a_gzip_file_is_fetched_and_unpacked(tmp_path: Path) -> None:
    good = published(tmp_path / "x.gz", gzip.compress(b"content"))
    archive = Archive(((tmp_path / "missing").as_uri(), *good.urls), good.md5)
    fetch_gzip(archive, tmp_path / "cache/x", "set")
    assert (tmp_path / "cache/x").read_bytes() == b"content"


@pytest.mark.parametrize("kind", ["missing", "checksum", "no member", "link", "no tar"])
def test_failed_downloads_leave_nothing(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source.tar.gz"
    contents = {
        "no member": tar_of({"set/b.bin": b"B"}),
        "link": tar_of({}, link="set/a.bin"),
        "no tar": b"noise",
    }
    archive = published(source, contents.get(kind, tar_of({"set/a.bin": b"A"})))
    if kind == "checksum":
        archive = Archive(archive.urls, "0" * 32)
    if kind == "missing":
        source.unlink()
    with pytest.raises(DataError, match=r"set is not in .*; set GRAPHOPT_DATA to a folder"):
        fetch_tar(archive, tmp_path / "cache/set", ["a.bin"], "set")
    assert list((tmp_path / "cache").iterdir()) == []


def test_missing_sets_are_fetched_into_the_root(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(root / "made", packed=True)
    monkeypatch.setattr(official, "_MNIST_HOSTS", ((root / "made").as_uri() + "/",))
    sums = {p.stem: hashlib.md5(p.read_bytes()).hexdigest() for p in (root / "made").iterdir()}
    monkeypatch.setattr(official, "_MNIST_MD5", sums)
    assert len(data.open("mnist:test")) == 9
    names = sorted(path.name for path in (root / "mnist").iterdir())
    assert names == ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def test_the_cache_is_in_the_home_folder_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHOPT_DATA", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert official.data_root() == Path("/somewhere/.cache/graphopt")
