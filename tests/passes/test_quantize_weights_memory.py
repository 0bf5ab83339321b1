"""quantize-weights: what is done in parts gives the same, and takes little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.quantize import gptq, scales
from graphopt.quantize.grid import INT4, UINT4
from graphopt.quantize.scales import fit_grid
from passes.quantize_weights import QuantizeWeights
from tests.asserting import parse


@pytest.mark.parametrize(("axis", "block"), [(0, 0), (1, 0), (0, 16), (1, 16)])
@pytest.mark.parametrize("centred", [True, False])
def test_grids_are_the_same_in_whatever_parts_they_are_fitted(
    axis: int, block: int, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_t(2, (40, 23, 3)).astype(np.float32)
    weight[:, 5] = weight[7] = 0
    importance = rng.random((1, 23, 1))
    form = INT4 if centred else UINT4
    found = []
    for size in (1 << 30, 200, 1):
        monkeypatch.setattr(scales, "_SLAB", size)
        found.append(fit_grid(weight, form, axis, block, centred=centred, importance=importance))
    for grid in found[1:]:
        np.testing.assert_array_equal(grid.scale, found[0].scale)
        np.testing.assert_array_equal(grid.zero, found[0].zero)
    codes = found[0].quantize(weight)
    np.testing.assert_array_equal(found[0].round(weight), found[0].dequantize(codes))


@pytest.mark.parametrize("block", [0, 32])
def test_fitting_a_grid_takes_a_few_times_the_weight(block: int) -> None:
    weight = np.random.default_rng(3).standard_normal((1024, 1024)).astype(np.float32)
    tracemalloc.start()
    fit_grid(weight, UINT4, 0, block, centred=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * weight.nbytes


def test_rounding_holds_no_second_copy_of_the_model() -> None:
    count, size = 8, 512
    weights = ", ".join(f"float[{size},{size}] w{i}" for i in range(count))
    body = " ".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(count))
    text = f"net (float[N,{size}] h0) => (float[N,{size}] h{count}) <{weights}> {{ {body} }}"
    graph = Graph.load(parse(text, opset=21))
    one = size * size * 4
    tracemalloc.start()
    QuantizeWeights(bits=8).run(graph, Context(original=graph))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * one / 4 + 4 * one, "all codes, and what one weight takes"


def test_gptq_makes_its_factor_in_place_of_one_copy() -> None:
    rows = np.random.default_rng(0).standard_normal((500, 400))
    rows[:, 7] = 0
    moments = rows.T @ rows
    before = moments.copy()
    order = np.random.default_rng(1).permutation(400)
    tracemalloc.start()
    factor = gptq._factor(moments, order, 0.01)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * moments.nbytes
    np.testing.assert_array_equal(moments, before)
    np.testing.assert_array_equal(np.triu(factor), factor)
    mean = moments.diagonal().mean()
    damping = np.where(moments.diagonal() > 0, 0.01 * mean, mean)
    damped = (moments + np.diag(damping))[np.ix_(order, order)]
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(400), atol=1e-9)
