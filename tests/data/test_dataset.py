"""Batches, parts and fingerprints of data sets."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from graphopt.data import Dataset, InputSpec
from graphopt.errors import DataError


def numbered(rows: int = 10) -> Dataset:
    x = np.arange(rows, dtype=np.float32)[:, None]
    return Dataset.from_arrays({"x": x}, labels=np.arange(rows))


def values(dataset: Dataset, size: int = 4) -> list[list[float]]:
    return [batch["x"][:, 0].tolist() for batch in dataset.batches(size)]


def fixed(dataset: Dataset, batch: int) -> Dataset:
    return dataset.bind([InputSpec("x", (batch, 1), np.dtype(np.float32))])


def test_batches_cover_all_rows_in_order() -> None:
    assert values(numbered()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(numbered().rows(4)) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert list(numbered().rows(4, 8)) == [slice(8, 10)]
    assert [len(batch["x"]) for batch in numbered().batches(4, start=4)] == [4, 2]
    assert values(numbered(), 100) == [list(range(10))]


def test_a_fixed_batch_drops_the_tail_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    dataset = fixed(numbered(), 4)
    with caplog.at_level(logging.INFO, "graphopt.data"):
        assert values(dataset, 3) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "2 of the 10 rows" in caplog.text
    assert list(dataset.rows(1)) == [slice(0, 4), slice(4, 8)]


def test_a_fixed_batch_that_cannot_be_filled_is_refused() -> None:
    with pytest.raises(DataError, match="exactly 16 rows at a time, arrays has 10"):
        fixed(numbered(), 16).batches(1)


def test_parts_keep_labels_beside_rows() -> None:
    part = numbered().select([7, 2, 5]).take(2)
    assert values(part) == [[7, 2]]
    assert part.labels is not None
    assert part.labels.tolist() == [7, 2]
    assert part.labels.dtype == np.int64
    assert len(numbered().take(99)) == 10
    assert len(fixed(numbered(), 4).take(1)) == 4, "fewer would fill no batch"
    assert len(fixed(numbered(), 4).take(6)) == 6


def test_split_is_disjoint_complete_and_seeded() -> None:
    first, second = numbered(100).split(0.3, seed=1)
    assert (len(first), len(second)) == (30, 70)
    assert sorted([*first.indices, *second.indices]) == list(range(100))
    again, _ = numbered(100).split(0.3, seed=1)
    other, _ = numbered(100).split(0.3, seed=2)
    assert again.indices.tolist() == first.indices.tolist()
    assert other.indices.tolist() != first.indices.tolist()


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_no_part_of_a_split_is_empty(fraction: float) -> None:
    assert min(map(len, numbered().split(fraction, seed=0))) == 1
    assert min(map(len, fixed(numbered(), 4).split(fraction, seed=0))) >= 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.take(0), "at least 1 row must be taken"),
        (lambda d: d.select([3, 10]), "rows 0 to 9, got 10"),
        (lambda d: d.select([-1]), "rows 0 to 9, got -1"),
        (lambda d: d.select([]), "no row"),
        (lambda d: d.split(0.0, seed=0), "between 0 and 1, got 0.0"),
        (lambda d: d.take(1).split(0.5, seed=0), "too few"),
        (lambda d: d.batches(0), "at least 1 row, got 0"),
    ],
)
def test_impossible_parts_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=message):
        call(numbered())


def test_fingerprint_follows_content_rows_and_binding() -> None:
    base = numbered()
    assert base.fingerprint() == numbered().fingerprint()
    changed = np.arange(10, dtype=np.float32)[:, None]
    changed[3] = 99
    others = [
        Dataset.from_arrays({"x": changed}, labels=np.arange(10)),
        Dataset.from_arrays({"x": base.take(10).source.read(base.indices)["x"]}),
        base.take(5),
        base.select(np.arange(10)[::-1]),
        fixed(base, 2),
    ]
    assert len({d.fingerprint() for d in [base, *others]}) == 6


def test_empty_data_is_refused() -> None:
    with pytest.raises(DataError, match="is empty"):
        Dataset.from_arrays({"x": np.zeros((0, 3))})
    with pytest.raises(DataError, match="no array with rows"):
        Dataset.from_arrays({})
