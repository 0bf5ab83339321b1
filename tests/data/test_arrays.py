"""Arrays as data: from memory and from .npz files, good and bad."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from graphopt import data
from graphopt.data import Dataset, InputSpec
from graphopt.errors import DataError

X = InputSpec("x", ("N", 3), np.dtype(np.float32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.npz"


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def test_npz_gives_arrays_and_labels(path: Path) -> None:
    x = floats(5, 3)
    np.savez(path, x=x, labels=np.array([0, 1, 2, 1, 0], np.int32))
    dataset = data.open(path, [X])
    (batch,) = dataset.batches(8)
    np.testing.assert_array_equal(batch["x"], x)
    assert dataset.labels is not None
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == [0, 1, 2, 1, 0]
    assert len(data.open(f"{path}[:2]", [X])) == 2


def test_an_input_named_labels_is_an_input(path: Path) -> None:
    np.savez(path, labels=floats(5, 3))
    dataset = data.open(path, [InputSpec("labels", ("N", 3), np.dtype(np.float32))])
    assert dataset.labels is None
    assert next(dataset.batches(2))["labels"].shape == (2, 3)


def test_rows_may_lie_on_another_axis_and_scalars_are_passed_whole(path: Path) -> None:
    state = floats(2, 5, 4)
    np.savez(path, x=floats(5, 3), state=state, sr=np.array(16000))
    inputs = [
        InputSpec("x", ("batch", "time"), np.dtype(np.float32)),
        InputSpec("state", (2, "batch", 4), np.dtype(np.float32)),
        InputSpec("sr", (), np.dtype(np.int64)),
    ]
    dataset = data.open(path, inputs)
    batches = list(dataset.batches(3))
    assert [b["x"].shape[0] for b in batches] == [3, 2]
    np.testing.assert_array_equal(np.concatenate([b["state"] for b in batches], axis=1), state)
    assert all(b["sr"] == 16000 for b in batches)


def test_an_unbound_npz_is_bound_later(path: Path) -> None:
    np.savez(path, x=floats(5, 3))
    assert len(data.open(path).take(3).bind([X])) == 3
    with pytest.raises(DataError, match="takes float64"):
        data.open(path).bind([InputSpec("x", ("N", 3), np.dtype(np.float64))])


def test_fingerprint_of_a_file_changes_with_it(path: Path) -> None:
    np.savez(path, x=floats(5, 3))
    first = data.open(path, [X]).fingerprint()
    assert data.open(path, [X]).fingerprint() == first
    np.savez(path, x=floats(6, 3))
    assert data.open(path, [X]).take(5).fingerprint() != first


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": floats(5, 4)}, r"takes shape \(N, 3\), d.npz has \(5, 4\)"),
        ({"X": floats(5, 3)}, "'X', which is no input"),
        ({"x": floats(5, 3), "y": floats(5, 3)}, "'y', which is no input"),
        ({}, "no array 'x'"),
        ({"x": floats(0, 3)}, "is empty"),
        ({"x": floats(5, 3), "labels": np.zeros(4, np.int64)}, "5 rows but 4 labels"),
        ({"x": floats(5, 3), "labels": np.zeros(5)}, "one integer a row.*float64"),
        ({"x": floats(5, 3), "labels": np.zeros((5, 2), np.int64)}, r"shape \(5, 2\)"),
    ],
)
def test_bad_arrays_are_refused(path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        data.open(path, [X])


def test_arrays_of_different_lengths_are_refused(path: Path) -> None:
    with pytest.raises(DataError, match="as many rows, found 'x' 5, 'y' 4"):
        Dataset.from_arrays({"x": floats(5, 3), "y": floats(4, 3)})


def test_pickles_are_refused(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (f"{marker}", "w"))  # type: ignore[return-value]

    np.savez(path, x=np.array([Evil()], dtype=object))
    with pytest.raises(DataError, match=r"cannot be read.*allow_pickle"):
        data.open(path, [X])
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["noise", "text", "empty", "truncated", "flipped", "foreign"])
def test_damaged_files_are_refused(path: Path, kind: str) -> None:
    np.savez_compressed(path, x=floats(500, 3))
    whole = path.read_bytes()
    contents = {
        "noise": np.random.default_rng(0).bytes(500),
        "text": b"not an archive",
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[:300] + bytes(b ^ 255 for b in whole[300:600]) + whole[600:],
    }
    if kind == "foreign":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': 5}     ")
    else:
        path.write_bytes(contents[kind])
    with pytest.raises(DataError, match=r"numpy\.savez") as raised:
        data.open(path, [X])
    assert "\n" not in str(raised.value)
