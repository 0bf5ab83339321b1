"""Where integers pay: the minimum cut finds the cheapest choice of all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.quantize import paying
from graphopt.quantize.calibrators import CALIBRATORS
from graphopt.quantize.collecting import Effort, collect
from graphopt.quantize.insertion import insert
from graphopt.quantize.paying import cheapest, named, paying_units, times
from graphopt.quantize.placement import Unit, place
from graphopt.quantize.plan import Plan, make_plan
from graphopt.runtime import kernels
from tests.asserting import parse, random_inputs
from tests.quantize.executing import calibration
from tests.quantize.test_static import NETWORK

MIXED = NETWORK.replace("r1 = Relu(s1)", "r1 = Tanh(s1)").replace(
    "=> (float[N,5] y)", "=> (float[N,5] y, float[N,8,12,12] r0)"
)


def _plan(graph: Graph) -> Plan:
    placement = place(graph)
    names = sorted({name for group in placement.groups.values() for name in group})
    seen = collect(graph, names, calibration(graph), Effort()).seen
    return make_plan(graph, placement, seen, CALIBRATORS["minmax"])


def _seconds(
    graph: Graph,
    plan: Plan,
    chosen: Collection[str],
    floats: Mapping[str, float],
    integers: Mapping[str, float],
    conversions: Mapping[str, float],
) -> float:
    """What a choice takes, counted by hand."""
    units = plan.placement.units
    total = sum(integers[u.name] if u.name in chosen else floats[u.name] for u in units)
    inside = {node for unit in units for node in unit.nodes}
    for name, seconds in conversions.items():
        made = any(name in unit.outputs and unit.name in chosen for unit in units)
        readers = [unit.name in chosen for unit in units if name in unit.reads]
        outside = [n for n in graph.consumers(name) if n.outputs[0].name not in inside]
        if outside or graph.is_output(name):
            readers.append(False)
        total += seconds * (any(reader != made for reader in readers))
    return total


@pytest.mark.parametrize("text", [NETWORK, MIXED])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999))
def test_no_other_choice_is_cheaper(text: str, seed: int) -> None:
    graph = Graph.load(parse(text))
    plan = _plan(graph)
    rng = np.random.default_rng(seed)
    names = [unit.name for unit in plan.placement.units]
    floats, integers = ({n: float(t) for n, t in zip(names, rng.integers(1, 50, len(names)) * 1e-6,
                                                     strict=True)} for _ in range(2))  # fmt: skip
    conversions = {name: float(rng.integers(0, 15)) * 1e-6 for name in plan.activations}
    costs = floats, integers, conversions
    found = [unit.name for unit in cheapest(graph, plan, *costs)]
    choices = chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))
    least = min(_seconds(graph, plan, choice, *costs) for choice in choices)
    assert _seconds(graph, plan, found, *costs) == pytest.approx(least, rel=1e-6)


def test_kernels_are_found_by_name() -> None:
    graph = Graph.load(parse(NETWORK))
    plan = _plan(graph)
    changed = graph.clone()
    insert(changed, plan)
    feeds = random_inputs(graph.to_model(), size=1)
    for model in (named(graph), changed):
        found = times(graph, plan.placement.units, kernels(model, feeds))
        assert all(found[unit.name] > 0 for unit in plan.layers)


def test_a_tiny_product_does_not_pay_and_large_layers_do() -> None:
    tiny = "t (float[N,4] x) => (float[N,4] y) <float[4,4] w> { t = Tanh(x) y = MatMul(t, w) }"
    graph = Graph.load(parse(tiny))
    assert paying_units(graph, _plan(graph), random_inputs(graph.to_model(), size=1)) == []
    large = """l (float[N,64,40,40] x) => (float[N,64,40,40] y)
    <float[64,64,3,3] w0, float[64,64,3,3] w1> {
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0)
        y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(c, w1)
    }"""
    graph = Graph.load(parse(large))
    found = paying_units(graph, _plan(graph), random_inputs(graph.to_model(), size=1))
    assert [unit.name for unit in found] == ["c", "y"]


def test_conversions_take_what_inputs_of_that_size_take(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """net (float[N,4,H,W] x) => (float[N,8,H,W] y) <float[8,4,1,1] w, float[8,8,1,1] v> {
        c = Conv<kernel_shape=[1,1]>(x, w)
        y = Conv<kernel_shape=[1,1]>(c, v)
    }"""
    graph = Graph.load(parse(text))
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 4, 20, 30)).astype(np.float32)}
    asked: list[Mapping[str, float]] = []

    def spied(graph: Graph, plan: Plan, *seconds: Mapping[str, float]) -> list[Unit]:
        asked.append(seconds[-1])
        return []

    monkeypatch.setattr(paying, "cheapest", spied)
    placement = place(graph)
    names = sorted({name for group in placement.groups.values() for name in group})
    seen = collect(graph, names, Dataset.from_arrays(feeds), Effort()).seen
    paying_units(graph, make_plan(graph, placement, seen, CALIBRATORS["minmax"]), feeds)
    (found,) = asked
    assert found["x"] == pytest.approx(4e-6 + 2400e-9)
    assert found["c"] == pytest.approx(4e-6 + 4800e-9)
