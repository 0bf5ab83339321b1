"""factorize: what is timed, what is faster, and a budget of time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from graphopt.factorize import timing
from graphopt.factorize.offers import Offer
from graphopt.ir import Array, Graph
from graphopt.runtime import BenchResult, Latency
from passes.factorize import Factorize
from tests.asserting import operators, parse
from tests.passes.factorizing import layers, network, run


def _bench(ratio: float, timed: list[Graph] | None = None) -> object:
    """A `bench` that finds a ratio, and notes what it was asked for."""
    latency = Latency(1.0, 1.0, 1.0)

    def measured(
        a: Graph, b: Graph, *, feeds: Mapping[str, Array], plan: object = None
    ) -> BenchResult:
        if timed is not None:
            timed.append(b)
        bounds = (ratio * 0.99, ratio * 1.01)
        return BenchResult(latency, latency, ratio, bounds, 20, 1)

    return measured


def test_only_what_is_measured_to_be_faster_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network()
    monkeypatch.setattr("graphopt.factorize.offers.bench", _bench(1.3))
    made, context = run(graph, Factorize(ratio=0.5))
    assert made.content_hash() == graph.content_hash()
    alone = context.notes["left_alone"]
    assert isinstance(alone, dict)
    assert set(alone.values()) == {"no replacement was measured to be faster"}
    monkeypatch.setattr("graphopt.factorize.offers.bench", _bench(0.6))
    monkeypatch.setattr("graphopt.factorize.timing.bench", _bench(0.8))
    made, context = run(graph, Factorize(ratio=0.5))
    assert {entry["time"] for entry in layers(context).values()} == {0.6}


@pytest.mark.parametrize(
    ("options", "count"),
    [({"ratio": 0.5}, 1), ({"energy": 0.8}, 1), ({"rank": 4}, 1), ({"macs": 0.5}, 8)],
)
def test_what_cannot_be_chosen_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, float], count: int
) -> None:
    timed: list[Graph] = []
    text = """one (float[N,32,8,8] x) => (float[N,32,6,6] y) <float[32,32,3,3] w> {
        y = Conv<kernel_shape=[3,3]>(x, w)
    }"""
    monkeypatch.setattr("graphopt.factorize.offers.bench", _bench(0.5, timed))
    monkeypatch.setattr("graphopt.factorize.timing.bench", _bench(0.5))
    _, context = run(Graph.load(parse(text)), Factorize(align=1, **options))  # type: ignore[arg-type]
    assert layers(context)
    assert len(timed) == count


def test_a_model_that_gets_slower_gets_its_layers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network()
    monkeypatch.setattr("graphopt.factorize.offers.bench", _bench(0.6))
    monkeypatch.setattr("graphopt.factorize.timing.bench", _bench(1.1))
    made, _ = run(graph, Factorize(ratio=0.5))
    assert made.content_hash() == graph.content_hash()
    _, context = run(graph, Factorize(macs=0.5))
    assert context.notes["left"] == 1.0
    assert "unmet" in context.notes


def test_what_gains_least_goes_first() -> None:
    class Slow(timing.Timer):
        def time(self, chosen: Mapping[str, Offer]) -> BenchResult:
            latency = Latency(1.0, 1.0, 1.0)
            ratio = 1.2 if "b" in chosen else 0.9
            return BenchResult(latency, latency, ratio, (ratio, ratio), 20, 1)

    offers = {
        name: Offer("svd", (1,), 1, 1, 0.1, 0.5, saved)
        for name, saved in (("a", 3.0), ("b", 1.0), ("c", 2.0))
    }
    graph = network()
    kept = timing.not_slower(offers, Slow(graph, {}))
    assert list(kept) == ["a"]


def test_a_budget_of_time_asks_again_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network()
    monkeypatch.setattr("graphopt.factorize.offers.bench", _bench(0.5))
    monkeypatch.setattr("graphopt.factorize.timing.bench", _bench(0.9))
    _, context = run(graph, Factorize(latency=0.7))
    assert context.notes["left"] == 0.9
    assert "latency 0.7" in str(context.notes["unmet"])


def test_real_time_of_a_wide_product() -> None:
    text = """wide (float[16,1024] x) => (float[16,1024] y) <float[1024,1024] w> {
        y = MatMul(x, w)
    }"""
    made, context = run(Graph.load(parse(text)), Factorize(rank=32))
    assert operators(made) == ["MatMul", "MatMul"]
    time = layers(context)["w"]["time"]
    assert isinstance(time, float)
    assert time < 0.9


def test_why_layers_stay_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "layer (float[N,32] x) => (float[N,32] y) <float[32,32] w> { y = MatMul(x, w) }"
    graph = Graph.load(parse(text))
    for options in ({"rank": 4}, {"ratio": 0.5}):
        _, context = run(graph, Factorize(methods=("spatial", "cp"), **options))
        assert context.notes["remark"] == "'w' is left as it was, of spatial, cp nothing fits it"
    monkeypatch.setattr("graphopt.factorize.offers.bench", _bench(0.6))
    monkeypatch.setattr("graphopt.factorize.timing.bench", _bench(1.1))
    _, context = run(graph, Factorize())
    why = "the model was not measured to be faster with it replaced"
    assert context.notes["left_alone"] == {"w": why}
    graph.set_constant("w", np.zeros((32, 32), np.float32))
    _, context = run(graph, Factorize(goal="macs"))
    assert context.notes["left_alone"] == {"w": "its weights are all zero"}
