"""Collecting ranges: constant memory, early stops, and what a stop says."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from graphopt.data import Dataset, input_specs
from graphopt.ir import Graph
from graphopt.quantize.collecting import Effort, collect
from tests.asserting import parse

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
