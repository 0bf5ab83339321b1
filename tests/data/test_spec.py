"""The grammar of data specifications."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from graphopt import data
from graphopt.data import InputSpec
from graphopt.errors import DataError

X = InputSpec("x", ("N", 64), np.dtype(np.float32))


@pytest.mark.parametrize(
    ("text", "split", "rows"),
    [
        ("digits", "train", 1437),
        ("digits", "test", 360),
        ("digits:test", "train", 360),
        ("digits:train", "test", 1437),
        ("digits[:100]", "train", 100),
        ("digits:test[:7]", "train", 7),
        ("digits[:99999]", "test", 360),
    ],
)
def test_digits(text: str, split: str, rows: int) -> None:
    dataset = data.open(text, [X], split="test" if split == "test" else "train")
    assert len(dataset) == rows
    assert dataset.spec == text


def test_the_parts_of_digits_are_fixed_and_complete() -> None:
    truth = load_digits().target
    parts = {part: data.open(f"digits:{part}", [X]).labels for part in ("train", "test")}
    assert parts["test"] is not None
    assert parts["train"] is not None
    np.testing.assert_array_equal(parts["test"], truth[::5])
    np.testing.assert_array_equal(parts["train"], np.delete(truth, np.s_[::5]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits", "digits:test"),
        ("cifar10[:500]", "cifar10:test[:500]"),
        ("mnist:train", None),
        ("photos/", None),
        ("d.npz[:5]", None),
        ("mine.py:load", None),
    ],
)
def test_held_out(text: str, expected: str | None) -> None:
    assert data.held_out(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit", "neither a data set .*did you mean 'digits'"),
        ("cifar-10[:50]", "did you mean 'cifar10'"),
        ("cifr10:test", "did you mean 'cifar10'"),
        ("digits:tset", "parts train and test, got 'tset'; did you mean 'test'"),
        ("digits[:0]", r"\[:N\] takes a number of rows from 1"),
        ("digits[:x]", r"\[:N\] takes a number"),
        ("digits[:-5]", r"\[:N\] takes a number"),
        ("digits[5:]", "neither a data set"),
        ("missing.npz", "there is no file missing.npz"),
        ("no/such/folder", "neither a data set"),
        ("", "neither a data set"),
        ("x" * 5000, "neither a data set"),
        ("nul\0byte", "neither a data set"),
    ],
)
def test_bad_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.open(text, [X])


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"table\.csv is no \.npz archive"):
        data.open(tmp_path / "table.csv", [X])


def test_a_name_comes_before_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(data.open("digits", [X])) == 1437
    with pytest.raises(DataError, match="holds no images"):
        data.open("./digits", [X])


def test_a_file_whose_name_looks_like_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "odd.npz[:2]"
    with path.open("wb") as file:
        np.savez(file, x=np.zeros((5, 64), np.float32))
    assert len(data.open(path, [X])) == 5


def test_preprocessing_is_for_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((5, 64), np.float32))
    with pytest.raises(DataError, match="preprocess: 'unit' is for images"):
        data.open(tmp_path / "d.npz", [X], preprocess="unit")
