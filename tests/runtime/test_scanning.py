"""Scans of single families, and widths that a latency budget asks for."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.coupling import couple
from graphopt.coupling.allocation import Candidates
from graphopt.coupling.removal import Plan
from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.runtime import Session, scanning
from graphopt.runtime.benchmark import BenchPlan, BenchResult, bench
from graphopt.runtime.scanning import cut, errors_of_outputs, fit_latency, latency_ratio, scan
from tests.asserting import assert_valid, parse
from tests.coupling.test_removal import CHAIN

X = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def graph() -> Graph:
    return Graph.load(parse(CHAIN))


@pytest.fixture
def candidates(graph: Graph) -> Candidates:
    families = couple(graph).families
    return Candidates(families, {f.name: np.arange(1.0, f.size + 1) for f in families})


def test_scan_judges_every_family_alone(candidates: Candidates) -> None:
    seen: list[Plan] = []

    def judge(plan: Plan) -> float:
        seen.append(plan)
        return float(len(seen))

    curves = scan(candidates, (0.25, 0.5, 0.55), judge)
    assert [list(plan) for plan in seen] == [["w"]] * 2 + [["v"]] * 2
    assert curves == {"w": [(0.25, 1.0), (0.5, 2.0)], "v": [(1 - 4 / 6, 3.0), (0.5, 4.0)]}


def test_error_of_outputs_is_that_of_the_cut_model(graph: Graph) -> None:
    judge = errors_of_outputs(couple(graph), Dataset.from_arrays({"x": X}))
    plan = {"w": [0, 2, 3, 4]}
    outputs = []
    for model in (graph, cut(graph, plan)):
        with Session.open(model) as session:
            outputs.append(session.run({"x": X})[0].astype(np.float64))
    error = ((outputs[1] - outputs[0]) ** 2).mean() / outputs[0].var()
    assert judge(plan) == pytest.approx(error, rel=1e-3)
    assert judge({"w": list(range(8))}) < 1e-9


def test_a_cut_copy_leaves_the_graph_alone(graph: Graph) -> None:
    smaller = cut(graph, {"w": [1, 2]})
    assert_valid(smaller)
    assert smaller.shape("w") == (2, 3, 3, 3)
    assert graph.shape("w") == (8, 3, 3, 3)


def _time(plan: Plan, sizes: dict[str, int]) -> float:
    """Channels of w cost four times those of v; together they save less than alone."""
    gone = {name: 1 - len(kept) / sizes[name] for name, kept in plan.items()}
    saved = 0.6 * gone.get("w", 0) + 0.15 * gone.get("v", 0)
    return 1 - saved * (0.8 if len(gone) > 1 else 1.0)


@pytest.mark.parametrize("target", [0.9, 0.7, 0.5])
def test_latency_is_met_with_little_loss(candidates: Candidates, target: float) -> None:
    sizes = {family.name: family.size for family in candidates.families}
    found = fit_latency(candidates, lambda plan: _time(plan, sizes), target)
    assert found.met
    assert target - 0.16 < found.left <= target
    assert found.left == _time(found.plan, sizes)


def test_latency_out_of_reach_gets_the_fastest_plan(candidates: Candidates) -> None:
    sizes = {family.name: family.size for family in candidates.families}
    found = fit_latency(candidates, lambda plan: _time(plan, sizes), 0.01)
    assert not found.met
    assert {name: len(kept) for name, kept in found.plan.items()} == {"w": 1, "v": 1}


def test_what_does_not_save_is_not_cut(candidates: Candidates) -> None:
    found = fit_latency(candidates, lambda plan: 0.5 if "v" in plan else 1.1, 0.6)
    assert list(found.plan) == ["v"]


def test_latency_is_timed_on_the_threads_asked_for(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def timed(*models: Graph, feeds: object, plan: BenchPlan) -> BenchResult:
        seen.append(plan.threads)
        return bench(*models, feeds={"x": X[:1]}, plan=BenchPlan(pairs=1, max_seconds=0.01))

    monkeypatch.setattr(scanning, "bench", timed)
    latency_ratio(graph, {"x": X[:1]}, threads=2)({"w": [0, 2, 3, 4]})
    assert seen == [2]


@pytest.mark.slow
def test_a_narrow_network_runs_faster() -> None:
    text = """wide (float[N,16,32,32] x) => (float[N,64,32,32] y)
    <float[256,16,3,3] w, float[64,256,3,3] v> {
        h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) y = Conv<pads=[1,1,1,1]>(r, v) }"""
    feeds = {"x": np.ones((1, 16, 32, 32), np.float32)}
    judge = latency_ratio(Graph.load(parse(text)), feeds)
    assert judge({"w": np.arange(32)}) < 0.5
