"""re-estimate-batch-norm: exact statistics, from the front to the back."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.passbase import Context
from passes.re_estimate_batch_norm import ReEstimateBatchNorm
from tests.asserting import parse

TEXT = """norms (float[N,3,5,5] x) => (float[N,4,5,5] y)
<float[4,3,1,1] w, float[4] s1, float[4] b1, float[4] m1, float[4] var1,
 float[4] s2, float[4] b2, float[4] m2, float[4] var2> {
    c = Conv<kernel_shape=[1,1]>(x, w)
    n = BatchNormalization(c, s1, b1, m1, var1)
    r = Relu(n)
    y = BatchNormalization(r, s2, b2, m2, var2)
}"""


def test_statistics_are_exact_and_in_order() -> None:
    model = parse(TEXT)
    graph = Graph.load(model)
    x = np.random.default_rng(0).standard_normal((70, 3, 5, 5)).astype(np.float32) + 100
    context = Context(original=graph.clone(), calibration=Dataset.from_arrays({"x": x}))
    ReEstimateBatchNorm().run(graph, context)
    found = {name: array.astype(np.float64) for name, array in graph.constants().items()}
    c = np.einsum("nihw,oi->nohw", x, found["w"][:, :, 0, 0])
    np.testing.assert_allclose(found["m1"], c.mean((0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(found["var1"], c.var((0, 2, 3)), rtol=1e-3)
    normal = (c - c.mean((0, 2, 3), keepdims=True)) / np.sqrt(
        c.var((0, 2, 3), keepdims=True) + 1e-5
    )
    shaped = (1, 4, 1, 1)
    r = np.maximum(normal * found["s1"].reshape(shaped) + found["b1"].reshape(shaped), 0)
    np.testing.assert_allclose(found["m2"], r.mean((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(found["var2"], r.var((0, 2, 3)), rtol=1e-2)
    assert context.notes["re_estimated"] == 2


def test_shared_statistics_are_left_alone() -> None:
    graph = Graph.load(parse(TEXT.replace("m2, var2)", "m1, var1)")))
    data = Dataset.from_arrays({"x": np.ones((20, 3, 5, 5), np.float32)})
    context = Context(original=graph.clone(), calibration=data)
    ReEstimateBatchNorm().run(graph, context)
    assert context.notes["left_alone"] == ["n", "y"]


def test_too_few_inputs() -> None:
    graph = Graph.load(parse(TEXT))
    data = Dataset.from_arrays({"x": np.ones((3, 3, 5, 5), np.float32)})
    with pytest.raises(DataError, match="3 inputs are too few; give at least 16"):
        ReEstimateBatchNorm().run(graph, Context(original=graph, calibration=data))
