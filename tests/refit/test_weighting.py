"""Weights of places: they follow the squared gradient, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.refit.weighting import place_weights
from tests.asserting import parse

TEXT = """case (float[N,3,4] x) => (float[N,1] y) <float[1,1,4] m> {
    t = Relu(x)
    p = Mul(t, m)
    axes = Constant<value_ints=[1,2]>()
    s = ReduceSum<keepdims=0>(p, axes)
    one = Constant<value_ints=[1]>()
    y = Unsqueeze(s, one)
}"""
FACTORS = np.array([0.0, 1.0, 2.0, 3.0], np.float32)


def case() -> tuple[Graph, Dataset]:
    graph = Graph.load(parse(TEXT))
    graph.set_constant("m", FACTORS.reshape(1, 1, 4))
    x = np.random.default_rng(0).standard_normal((50, 3, 4)).astype(np.float32)
    return graph, Dataset.from_arrays({"x": x})


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_weights_are_powers_of_squared_gradients(power: float) -> None:
    graph, dataset = case()
    weights = place_weights(graph, {"t": 1}, dataset, power)["t"]
    assert weights.shape == (50, 4)
    np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-5)
    floor = weights[:, :1]
    np.testing.assert_allclose(floor, floor[0, 0], rtol=1e-5)
    usual = (weights < 10 * weights.mean()).all(axis=1)
    parts = (weights - floor)[usual] / (weights - floor)[usual][:, 1:2]
    np.testing.assert_allclose(parts, np.tile(FACTORS ** (2 * power), (usual.sum(), 1)), rtol=1e-2)


def test_batches_do_not_matter_to_the_order_of_rows() -> None:
    graph, dataset = case()
    both = place_weights(graph, {"t": 1, "p": 1}, dataset, 1.0, seed=3)
    again = place_weights(graph, {"t": 1}, dataset, 1.0, seed=3)
    np.testing.assert_allclose(both["t"], again["t"], rtol=1e-4)
    assert np.ptp(both["p"], axis=1).max() < 1e-5


def test_gradients_that_are_not_finite_are_named() -> None:
    graph, dataset = case()
    graph.set_constant("m", np.full((1, 1, 4), np.inf, np.float32))
    with pytest.raises(DataError, match="gradient at 't' is not finite"):
        place_weights(graph, {"t": 1}, dataset, 1.0)
