"""Layers with far more outputs than inputs, or the reverse: exact, without a square of a side."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.factorize import METHODS, Kernel, kernel_of
from graphopt.factorize.kernels import Chain, Doubles
from graphopt.factorize.sampling import Sample, sample_of
from graphopt.ir import Graph
from graphopt.refit.frontier import Frontier
from tests.asserting import parse


def _graph(inputs: int, outputs: int) -> Graph:
    return Graph.load(
        parse(
            f"""layer (float[N,{inputs}] x) => (float[N,{outputs}] y)
            <float[{inputs},{outputs}] w> {{ y = MatMul(x, w) }}"""
        )
    )


def _kernel(graph: Graph) -> Kernel:
    kernel = kernel_of(graph, graph.nodes[0])
    assert isinstance(kernel, Kernel)
    return kernel


def _sample(columns: int, rows: int = 64) -> Sample:
    """Rows that live in few dimensions, but for a little."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((1, rows, 5)) @ rng.standard_normal((5, columns))
    values += 0.1 * rng.standard_normal(values.shape)
    return Sample(values.astype(np.float32), np.zeros((1, columns)))


def _projected(matrix: Doubles, moment: Doubles, rank: int) -> Doubles:
    """The matrix with its rows projected to where most of W M W' is."""
    basis = np.linalg.eigh(matrix @ moment @ matrix.T)[1][:, -rank:]
    return np.asarray(basis @ basis.T @ matrix)


@pytest.mark.parametrize("ends", [(9, 30), (30, 9), (12, 12)])
def test_projection_is_the_best_of_the_sums(ends: tuple[int, int]) -> None:
    kernel = _kernel(_graph(*ends))
    sample = _sample(ends[0])
    wanted = _projected(kernel.tensor[0], sample.moment((0,), ends[:1])[0], 4)
    made = METHODS["svd"].decompose(kernel, sample).build((4,), 0).kernel[0]
    np.testing.assert_allclose(made, wanted, atol=1e-3)
    plain = _projected(kernel.tensor[0], np.eye(ends[0]), 4)
    made = METHODS["svd"].decompose(kernel, None).build((4,), 0).kernel[0]
    np.testing.assert_allclose(made, plain, atol=1e-8)


@pytest.mark.parametrize("ends", [(16, 3000), (3000, 16)])
@pytest.mark.parametrize("sampled", [False, True])
def test_memory_grows_with_the_weight_alone(ends: tuple[int, int], *, sampled: bool) -> None:
    kernel = _kernel(_graph(*ends))
    sample = _sample(ends[0]) if sampled else None
    tracemalloc.start()
    try:
        chain: Chain = METHODS["svd"].decompose(kernel, sample).build((8,), 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert chain.kernel.shape == kernel.tensor.shape
    assert peak < 20 * kernel.tensor.nbytes


def test_wide_layers_are_seen_in_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _graph(64, 4)
    x = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    walk = Frontier(graph, Dataset.from_arrays({"x": x}))
    whole = sample_of(_kernel(graph), walk, 0)
    monkeypatch.setattr("graphopt.factorize.sampling._MOST", 64 * 100)
    fewer = sample_of(_kernel(graph), walk, 0)
    assert whole is not None
    assert fewer is not None
    assert whole.rows.shape == (1, 300, 64)
    assert 100 <= fewer.rows.shape[1] < 100 + 32, "whole batches are taken"


def test_no_product_of_factors_is_larger_than_a_column_for_each_component() -> None:
    graph = Graph.load(
        parse(
            """layer (float[N,64,8,8] x) => (float[N,64,6,6] y) <float[64,64,3,3] w> {
                y = Conv<kernel_shape=[3,3]>(x, w)
            }"""
        )
    )
    kernel = _kernel(graph)
    decomposition = METHODS["cp"].decompose(kernel, None)
    tracemalloc.start()
    try:
        chain = decomposition.build((256,), 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert chain.kernel.shape == kernel.tensor.shape
    column = 64 * 3 * 3 * 256 * 8
    assert peak < 8 * column, "64 * 64 * 3 places for each component would be 21 columns"
