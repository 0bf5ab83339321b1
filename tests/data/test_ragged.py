"""Rows that differ in shape: each is a batch of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt import data
from graphopt.data import Dataset, InputSpec
from graphopt.data.mirroring import mirrored
from graphopt.errors import DataError

IMAGE = InputSpec("x", ("N", 3, "H", "W"), np.dtype(np.float32))
STATE = InputSpec("s", (2, "N"), np.dtype(np.float32))

BODY = """import numpy as np

def load():
    for n in range(6):
        x = np.full((3, 4 + n // 3, 5 + n), n, np.float32)
        yield {items}
"""


def opened(folder: Path, items: str, *inputs: InputSpec, where: str = "") -> Dataset:
    (folder / "mine.py").write_text(BODY.format(items=items))
    return data.open(f"{folder / 'mine.py'}:load{where}", inputs)


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    dataset = opened(tmp_path, "x, 10 * n", IMAGE)
    batches = [batch["x"] for batch in dataset.batches(4)]
    assert [batch.shape for batch in batches] == [(1, 3, 4 + n // 3, 5 + n) for n in range(6)]
    assert [int(batch.max()) for batch in batches] == list(range(6))
    assert list(dataset.rows(4)) == [slice(n, n + 1) for n in range(6)]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 10, 20, 30, 40, 50]


def test_parts_of_rows_stay_so(tmp_path: Path) -> None:
    whole = opened(tmp_path, "(np.stack([x, x + 100]), [n, n + 100])", IMAGE)
    assert len(whole) == 12
    rest = whole.take(11).split(0.5, 1)[0].select([4, 0, 2]).bind([IMAGE])
    shown = [batch["x"] for batch in rest.batches(8)]
    assert [batch.shape[0] for batch in shown] == [1, 1, 1]
    assert rest.labels is not None
    assert [row.max() for row in shown] == rest.labels.tolist()
    assert [len(batch["x"]) for batch in mirrored(rest).batches(8)] == [1] * 6


def test_what_is_not_along_the_rows_comes_with_its_row(tmp_path: Path) -> None:
    items = "{'x': x[None], 's': np.full((2, 1), n, np.float32)}"
    batches = list(opened(tmp_path, items, IMAGE, STATE).batches(3))
    assert [batch["s"].shape for batch in batches] == [(2, 1)] * 6
    assert all(batch["s"].max() == batch["x"].max() for batch in batches)


def test_what_is_of_one_shape_is_read_together(tmp_path: Path) -> None:
    dataset = opened(tmp_path, "x", IMAGE, where="[:1]")
    assert (len(dataset), dataset.alone) == (1, False)


def test_they_make_no_batch(tmp_path: Path) -> None:
    dataset = opened(tmp_path, "x", IMAGE)
    with pytest.raises(DataError, match="rows of several shapes, which make no batch together"):
        dataset.source.read(np.arange(2))
    fixed = InputSpec("x", (2, 3, "H", "W"), np.dtype(np.float32))
    with pytest.raises(DataError, match="pad them to one shape"):
        list(dataset.bind([fixed]).batches(2))


def test_every_part_is_checked_and_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"takes shape \(N, 3, 4, W\), .* has \(1, 3, 5, 8\)"):
        opened(tmp_path, "x", InputSpec("x", ("N", 3, 4, "W"), np.dtype(np.float32)))
    found = [opened(tmp_path, items, IMAGE).fingerprint() for items in ("x", "x", "x + (n == 4)")]
    assert found[0] == found[1] != found[2]
