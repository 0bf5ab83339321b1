"""Removal: a cut model computes what the original does with the removed channels masked."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.coupling import Coupling, couple, mask, prepare, remove
from graphopt.coupling.selection import select
from graphopt.errors import EditError, RecipeError
from graphopt.ir import Graph
from tests.asserting import assert_same_outputs, parse, random_inputs
from tests.coupling.strategies import networks

SLOW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def cut_half(model: onnx.ModelProto, seed: int, *, inner: bool = False) -> tuple[Graph, Coupling]:
    """Cut half of every family at random, and check the result against the mask."""
    graph = Graph.load(model)
    prepare(graph)
    coupling = couple(graph, inner=inner)
    rng = np.random.default_rng(seed)
    plan = {f.name: select(f, rng.random(f.size), 0.5) for f in coupling.families}
    reference = mask(coupling, plan)
    remove(graph, coupling, plan)
    graph.verify()
    feeds = random_inputs(model)
    assert_same_outputs(reference.to_model(), graph, feeds=feeds, tolerance=1e-5)
    return graph, coupling


@SLOW
@given(networks(), st.integers(0, 1000))
def test_cut_equals_mask(model: onnx.ModelProto, seed: int) -> None:
    cut_half(model, seed)


CHAIN = """chain (float[N,3,8,8] x) => (float[N,4] y)
<float[8,3,3,3] w, float[8] b, float[6,8,1,1] v, float[4,6] u> {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(a)
    c = Conv(r, v)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    y = Gemm<transB=1>(f, u)
}"""


def test_record_names_axes_and_kept_indices() -> None:
    graph = Graph.load(parse(CHAIN))
    before = graph.constants()
    coupling = couple(graph)
    record = remove(graph, coupling, {"w": [0, 3, 5]})
    assert record == {"w": {0: [0, 3, 5]}, "b": {0: [0, 3, 5]}, "v": {1: [0, 3, 5]}}
    for name, axes in record.items():
        array = before[name]
        for axis, kept in axes.items():
            array = np.take(array, kept, axis=axis)
        np.testing.assert_array_equal(graph.constant(name), array)


@pytest.mark.parametrize(
    ("plan", "error", "message"),
    [
        ({"w": []}, EditError, "at least one"),
        ({"w": [8]}, EditError, "0 to 7"),
        ({"z": [0]}, RecipeError, "no family 'z'"),
        ({"u": [0]}, RecipeError, "output 'y'"),
    ],
)
def test_bad_plans_change_nothing(
    plan: dict[str, list[int]], error: type[Exception], message: str
) -> None:
    graph = Graph.load(parse(CHAIN))
    before = graph.to_bytes()
    with pytest.raises(error, match=message):
        remove(graph, couple(graph), plan)
    assert graph.to_bytes() == before


def test_a_plan_for_an_edited_graph_is_refused() -> None:
    graph = Graph.load(parse(CHAIN))
    coupling = couple(graph)
    remove(graph, coupling, {"w": [0, 1]})
    with pytest.raises(EditError, match="couple anew"):
        remove(graph, coupling, {"w": [0]})
