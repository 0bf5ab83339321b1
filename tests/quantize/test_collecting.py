"""Collecting ranges: constant memory, early stops, threads, and going on after an interruption."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from graphopt.data import Dataset, input_specs
from graphopt.errors import DataError, TargetError
from graphopt.ir import Graph
from graphopt.quantize import collecting
from graphopt.quantize.collecting import Collected, Effort, collect
from tests.asserting import parse
from tests.quantize.sequences import sequences

TEXT = """m (float[N,4,16,16] x) => (float[N,4,16,16] y) <float[4,4,1,1] w> {
    c = Conv<kernel_shape=[1,1]>(x, w)
    y = Relu(c)
}"""


def _case(rows: int, *, growing: bool = False) -> tuple[Graph, Dataset]:
    graph = Graph.load(parse(TEXT))
    x = np.random.default_rng(0).standard_normal((rows, 4, 16, 16)).astype(np.float32)
    if growing:
        x *= np.arange(1, rows + 1, dtype=np.float32)[:, None, None, None]
    return graph, Dataset.from_arrays({"x": x}).bind(input_specs(graph))


def test_memory_does_not_grow_with_the_inputs() -> None:
    peaks = []
    for rows in (64, 1024):
        graph, data = _case(rows)
        tracemalloc.start()
        collect(graph, ["x", "c", "y"], data, Effort())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_extremes_are_those_of_all_inputs() -> None:
    graph, data = _case(50)
    found = collect(graph, ["x", "y"], data, Effort())
    x = data.source.read(data.indices)["x"]
    assert (found.seen["x"].low, found.seen["x"].high) == (x.min(), x.max())
    assert found.seen["x"].counts.sum() == x.size
    assert found.seen["y"].low == 0
    assert (found.inputs, found.stopped) == (50, None)


def test_it_stops_when_ranges_have_settled() -> None:
    graph, data = _case(1024)
    found = collect(graph, ["x", "y"], data, Effort(settled=0.05))
    assert found.inputs == 64
    assert found.stopped == "ranges had settled after 64 inputs"
    graph, data = _case(300, growing=True)
    assert collect(graph, ["x", "y"], data, Effort(settled=0.05)).stopped is None


def test_it_stops_when_time_is_over() -> None:
    graph, data = _case(1024)
    found = collect(graph, ["x"], data, Effort(seconds=1e-9))
    assert found.inputs == 8
    assert found.stopped is not None
    assert "seconds were over" in found.stopped


@pytest.mark.parametrize("settled", [None, 0.01])
def test_progress_ends_at_one(settled: float | None) -> None:
    graph, data = _case(40)
    seen: list[float] = []
    collect(graph, ["x"], data, Effort(settled=settled), progress=seen.append)
    assert seen[-1] == 1
    assert seen == sorted(seen)


def _facts(found: Collected) -> list[object]:
    """All that was found, to the last bit."""
    entries = [
        (name, e.counts.tolist(), e.exponent, e.low, e.high, e.faded, e.inputs)
        for name, e in found.seen.items()
    ]
    return [entries, found.inputs, found.stopped]


@pytest.mark.parametrize("settled", [None, 0.05])
@pytest.mark.parametrize("threads", [2, 5, 0])
def test_any_number_of_threads_finds_the_same(threads: int, settled: float | None) -> None:
    graph, data = _case(203, growing=True)
    alone = collect(graph, ["x", "c", "y"], data, Effort(settled=settled))
    found = collect(graph, ["x", "c", "y"], data, Effort(settled=settled, threads=threads))
    assert _facts(found) == _facts(alone)


def test_what_a_thread_finds_wrong_is_said() -> None:
    graph, data = _case(64)
    x = data.source.read(data.indices)["x"]
    x[50, 1, 2, 3] = np.inf
    data = Dataset.from_arrays({"x": x}).bind(input_specs(graph))
    with pytest.raises(DataError, match="'x' holds NaN or infinite values, 1 of"):
        collect(graph, ["x", "y"], data, Effort(threads=3))


class _Stop:
    """Interrupts after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __call__(self, fraction: float) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1


@pytest.mark.parametrize(
    ("growing", "batches", "rows"), [(True, 1, 50), (True, 5, 50), (False, 5, 1024), (True, 6, 50)]
)
def test_an_interrupted_calibration_goes_on(
    tmp_path: Path, growing: bool, batches: int, rows: int
) -> None:
    graph, data = _case(rows, growing=growing)
    names = ["x", "c", "y"]
    effort = Effort(settled=0.05, checkpoints=tmp_path / "kept", save_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        collect(graph, names, data, effort, progress=_Stop(batches))
    found = collect(graph, names, data, dataclasses.replace(effort, threads=2))
    assert found.resumed == 8 * batches
    assert _facts(found) == _facts(collect(graph, names, data, Effort(settled=0.05)))
    assert found.stopped == (None if growing else "ranges had settled after 64 inputs")


def test_what_was_gathered_is_not_gathered_again(tmp_path: Path) -> None:
    graph, data = _case(1024)
    efforts = [Effort(checkpoints=tmp_path), Effort(settled=0.05, checkpoints=tmp_path),
               Effort(seconds=1e-9, checkpoints=tmp_path)]  # fmt: skip
    first = [collect(graph, ["x", "y"], data, effort) for effort in efforts]
    again = [collect(graph, ["x", "y"], data, effort, progress=_Stop(0)) for effort in efforts]
    assert [found.inputs for found in first] == [1024, 64, 8]
    assert [found.resumed for found in first] == [0, 0, 0]
    assert [found.resumed for found in again] == [1024, 64, 8]
    assert [*map(_facts, again)] == [*map(_facts, first)]
    for other, names in ((data, ["x"]), (data.take(1000), ["x", "y"])):
        assert collect(graph, names, other, efforts[0]).resumed == 0


@pytest.mark.parametrize("damage", [b"", b"nothing", None])
def test_a_damaged_file_counts_as_absent(tmp_path: Path, damage: bytes | None) -> None:
    graph, data = _case(64)
    effort = Effort(checkpoints=tmp_path)
    first = collect(graph, ["x", "y"], data, effort)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1000] if damage is None else damage)
    found = collect(graph, ["x", "y"], data, effort)
    assert found.resumed == 0
    assert _facts(found) == _facts(first)


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    graph, data = _case(8)
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match=r"checkpoints .*file/kept: cannot be made"):
        collect(graph, ["x"], data, Effort(checkpoints=tmp_path / "file" / "kept"))


def test_a_model_with_a_fixed_batch_goes_on(tmp_path: Path) -> None:
    graph = Graph.load(parse(TEXT.replace("N,", "3,")))
    x = np.random.default_rng(0).standard_normal((14, 4, 16, 16)).astype(np.float32)
    data = Dataset.from_arrays({"x": x}).bind(input_specs(graph))
    effort = Effort(checkpoints=tmp_path, save_seconds=0.0, threads=2)
    with pytest.raises(KeyboardInterrupt):
        collect(graph, ["x", "y"], data, effort, progress=_Stop(2))
    found = collect(graph, ["x", "y"], data, effort)
    assert (found.resumed, found.inputs) == (6, 12)
    assert _facts(found) == _facts(collect(graph, ["x", "y"], data, Effort()))
    assert collect(graph, ["x", "y"], data, effort).resumed == 12


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_may_differ_in_shape(tmp_path: Path, threads: int) -> None:
    graph, data = sequences()
    effort = Effort(threads=threads, checkpoints=tmp_path, save_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        collect(graph, ["x", "r", "y"], data, effort, progress=_Stop(4))
    found = collect(graph, ["x", "r", "y"], data, effort)
    batches = [batch["x"] for batch in data.batches(8)]
    assert len({batch.shape[1] for batch in batches}) > 3
    assert found.seen["x"].counts.sum() == sum(batch.size for batch in batches)
    assert found.seen["x"].low == min(float(batch.min()) for batch in batches)
    assert (found.inputs, found.resumed) == (70, 32)
    made = [np.maximum(batch @ graph.constants()["w"], 0) for batch in batches]
    assert found.seen["r"].high == pytest.approx(max(float(a.max()) for a in made), rel=1e-5)


def test_large_tensors_are_looked_at_one_input_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = _case(16)
    each = 3 * 4 * 16 * 16 * 4
    for room, batches in ((each, 16), (3 * each, 6), (1 << 30, 2)):
        monkeypatch.setattr(collecting, "_BATCH_BYTES", room)
        seen: list[float] = []
        collect(graph, ["x", "c", "y"], data, Effort(), progress=seen.append)
        assert len(seen) == batches
