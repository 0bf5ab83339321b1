"""Intermediate tensors come out batch by batch, and what is not finite is named."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.errors import DataError, EditError
from graphopt.ir import Graph
from graphopt.runtime.observing import batch_size_for, bytes_of_one, observe
from tests.asserting import parse
from tests.samples import convnet

X = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)


def test_values_are_those_of_the_graph_batch_by_batch() -> None:
    graph = Graph.load(convnet())
    before = graph.fingerprint()
    batches = list(observe(graph, ["r", "x", "a"], Dataset.from_arrays({"x": X}), batch_size=2))
    assert [list(batch) for batch in batches] == [["r", "x", "a"]] * 3
    assert [len(batch["r"]) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), X)
    for batch in batches:
        np.testing.assert_array_equal(np.maximum(batch["a"], 0), batch["r"])
        assert (batch["a"] < 0).any()
    assert graph.fingerprint() == before


def test_inputs_alone_need_no_run() -> None:
    data = Dataset.from_arrays({"x": X})
    (batch,) = observe(Graph.load(convnet()), ["x"], data, batch_size=8)
    np.testing.assert_array_equal(batch["x"], X)


def test_what_is_not_finite_is_named() -> None:
    graph = Graph.load(parse("g (float[N,2] x) => (float[N,2] y) { t = Log(x) y = Neg(t) }"))
    data = Dataset.from_arrays({"x": np.array([[1, 2], [3, -1], [0, 1]], np.float32)})
    with pytest.raises(DataError, match=r"'t' holds NaN or infinite values, 2 of 6"):
        list(observe(graph, ["t"], data, batch_size=4))


@pytest.mark.parametrize("name", ["w", "nothing", ""])
def test_what_no_node_computes_is_refused(name: str) -> None:
    graph = Graph.load(convnet())
    with pytest.raises(EditError, match="computes"):
        list(observe(graph, [name], Dataset.from_arrays({"x": X}), batch_size=4))


@pytest.mark.parametrize(("size", "each"), [("8", 2 * 8 * 8 * 4), ("H", 2 * 20 * 8 * 4)])
def test_sizes_that_are_open_are_those_of_the_data(size: str, each: int) -> None:
    text = "g (float[N,1,H,8] x) => (float[N,1,H,8] y) { t = Log(x) y = Neg(t) }"
    graph = Graph.load(parse(text.replace("H", size)))
    x = np.zeros((5, 1, 8 if size == "8" else 20, 8), np.float32)  # whose logarithm is not finite
    data = Dataset.from_arrays({"x": x})
    assert bytes_of_one(graph, ["t", "x"], data) == each
    assert batch_size_for(graph, ["t", "x"], data) == 32


def test_batches_of_large_inputs_are_small() -> None:
    graph = Graph.load(parse("g (float[N,M] x) => (float[N,M] y) { y = Neg(x) }"))
    data = Dataset.from_arrays({"x": np.zeros((2, 8 << 20), np.float32)})
    assert batch_size_for(graph, ["x", "y"], data) == 4
