"""What counts as an error of the outputs, and which layers it sends back to floats."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from graphopt.data import Dataset, input_specs
from graphopt.ir import Graph
from graphopt.quantize.calibrators import CALIBRATORS
from graphopt.quantize.collecting import Effort, collect
from graphopt.quantize.placement import place
from graphopt.quantize.plan import Plan, make_plan
from graphopt.quantize.sensitivity import Errors, capped, decibels, layers_to_free
from tests.asserting import parse, random_inputs
from tests.quantize.executing import calibration
from tests.quantize.test_static import NETWORK

HEAD = """net (float[N,4] x) => ({output} y)
<float[4] a, float zero = {{0.0}}, int64[1] flat = {{-1}}> """
LOGARITHM = HEAD.format(output="float[N,4]") + "{ s = Add(x, a) r = Relu(s) y = Log(r) }"
POSITIVE = (
    HEAD.format(output="float[K]")
    + """{
    s = Add(x, a)
    g = Greater(s, zero)
    c = Reshape(g, flat)
    f = Reshape(s, flat)
    y = Compress(f, c)
}"""
)
BEST = HEAD.format(output="int64[N,1]") + "{ s = Add(x, a) t = Tanh(s) y = ArgMax<axis=1>(t) }"


def judged(text: str) -> tuple[Graph, Errors]:
    graph = Graph.load(parse(text))
    data = Dataset.from_arrays(random_inputs(graph.to_model(), size=64)).bind(input_specs(graph))
    return graph, Errors.of(graph, data, 1)


def shifted(graph: Graph, by: float) -> Graph:
    other = graph.clone()
    other.set_constant("a", graph.constants()["a"].astype(np.float32) + np.float32(by))
    return other


@pytest.mark.parametrize("text", [LOGARITHM, POSITIVE])
def test_other_sizes_and_other_infinities_are_infinite_errors(text: str) -> None:
    graph, errors = judged(text)
    assert errors.relative(graph) == 0
    assert 0 < errors.relative(shifted(graph, 1e-6)) < 1e-3
    assert errors.relative(shifted(graph, 1.0)) == math.inf


def test_integers_are_judged_by_the_floats_before_them() -> None:
    graph, errors = judged(BEST)
    assert errors.names == ("t",)
    assert errors.relative(graph) == 0
    assert 1e-4 < errors.relative(shifted(graph, 0.1)) < 0.1


def test_judging_holds_one_batch_beside_what_is_wanted() -> None:
    text = "net (float[N,64,64] x) => (float[N,64,64] y) <float[64,64] a> { y = Mul(x, a) }"
    graph = Graph.load(parse(text))
    x = np.random.default_rng(0).standard_normal((64, 64, 64)).astype(np.float32)
    data = Dataset.from_arrays({"x": x})
    peaks = []
    for count in (32, 64):
        tracemalloc.start()
        errors = Errors.of(graph, data.take(count), 1)
        held = tracemalloc.get_traced_memory()[0]
        assert held < 1.1 * x[:count].nbytes, "outputs in their own precision"
        assert errors.relative(graph) == 0
        peaks.append(tracemalloc.get_traced_memory()[1] - held)
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_decibels_of_what_is_no_number() -> None:
    assert decibels(0.0) == math.inf
    assert decibels(0.1) == pytest.approx(10)
    assert decibels(math.inf) == -math.inf
    assert math.isnan(decibels(math.nan))


def test_infinite_errors_count_as_the_worst() -> None:
    assert capped({"a": math.inf, "b": 0.5}) == {"a": 100.0, "b": 0.5}
    assert capped({"a": math.inf, "b": 500.0}) == {"a": 500.0, "b": 500.0}


def _plan(graph: Graph, floats: tuple[str, ...] = ()) -> Plan:
    placement = place(graph, floats=floats)
    names = sorted({name for group in placement.groups.values() for name in group})
    seen = collect(graph, names, calibration(graph), Effort()).seen
    return make_plan(graph, placement, seen, CALIBRATORS["minmax"])


def test_the_layer_that_ruins_goes_first_and_no_more_than_needed_after_it() -> None:
    graph = Graph.load(parse(NETWORK))
    plan = _plan(graph)
    names = [unit.nodes[0] for unit in plan.layers]
    assert names == ["c0", "c1", "c2", "y"]
    alone = {"c0": 1e-3, "c1": math.inf, "c2": 2e-3, "y": 1e-3}
    assert layers_to_free(graph, plan, alone, math.inf, 0.03) == ["c1"]
    again = _plan(graph, ("c1",))
    assert layers_to_free(graph, again, alone, 4e-3, 3.5e-3) in (["c0"], ["c2"], ["y"])
    every = dict.fromkeys(names, math.inf)
    assert layers_to_free(graph, plan, every, math.inf, 0.03) == names
