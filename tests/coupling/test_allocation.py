"""Widths for budgets: what is left is what a real cut leaves, the mildest cut that meets wins."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.cost import cost
from graphopt.coupling import couple, remove
from graphopt.coupling.allocation import Candidates, by_error, by_score, fit, uniform
from graphopt.coupling.importance import importance
from graphopt.coupling.knapsack import choose
from graphopt.coupling.statistics import Statistics
from graphopt.coupling.work import bytes_of, macs_of
from graphopt.ir import Graph
from tests.asserting import parse

TEXT = """net (float[N,3,8,8] x) => (float[N,5] y)
<float[16,3,3,3] a, float[16] ab, float[16,1,3,3] d, float[24,16,1,1] b, float[8,12,3,3] g,
 float[12,8,3,3] c, float[12,48] f, float[12,5] h> {
    p = Conv<pads=[1,1,1,1]>(x, a, ab)
    q = Conv<pads=[1,1,1,1], group=16>(p, d)
    r = Relu(q)
    s = Conv(r, b)
    t = Conv<group=2>(s, g)
    u = Conv<strides=[2,2]>(t, c)
    v = Flatten(u)
    w = Gemm<transB=1>(v, f)
    z = Relu(w)
    y = MatMul(z, h)
}"""


@pytest.fixture
def candidates() -> tuple[Graph, Candidates]:
    graph = Graph.load(parse(TEXT))
    families = couple(graph).families
    scores = {
        family.name: np.asarray(importance("l2", family, graph, Statistics()))
        for family in families
    }
    return graph, Candidates(families, scores)


@pytest.mark.parametrize("target", [0.75, 0.5, 0.3])
@pytest.mark.parametrize("allocate", [uniform, by_score])
@pytest.mark.parametrize("what", ["macs", "bytes"])
def test_what_is_left_is_what_a_cut_leaves(
    candidates: tuple[Graph, Candidates], target: float, allocate: type, what: str
) -> None:
    graph, given = candidates
    coupling = couple(graph)
    work = macs_of(coupling) if what == "macs" else bytes_of(coupling)
    found = fit(given, allocate(given), work.left, target)
    before = cost(graph)
    remove(graph, coupling, found.plan)
    after = cost(graph)
    real = after.macs / before.macs if what == "macs" else after.weight_bytes / before.weight_bytes
    assert found.met
    assert found.left == pytest.approx(real, rel=1e-9)
    assert target - 0.25 < real <= target


def test_nothing_milder_meets_the_budget(candidates: tuple[Graph, Candidates]) -> None:
    _, given = candidates
    allocation = by_score(given)
    found = fit(given, allocation, given.left, 0.6)
    total = sum(family.size for family in given.families)
    gone = round(total * (1 - found.left))
    milder = given.plan(allocation((gone - 1.5) / total))
    assert given.left(milder) > 0.6 >= found.left


def test_a_budget_out_of_reach_gets_the_strongest_plan(
    candidates: tuple[Graph, Candidates],
) -> None:
    graph, given = candidates
    floored = Candidates(given.families, given.scores, floor=0.5)
    found = fit(floored, uniform(floored), macs_of(couple(graph)).left, 0.01)
    assert not found.met
    assert found.left > 0.01
    assert all(len(found.plan[f.name]) == -(-f.size // 2) for f in given.families if not f.even)


def test_one_threshold_for_all(candidates: tuple[Graph, Candidates]) -> None:
    _, given = candidates
    scores = {name: row.copy() for name, row in given.scores.items()}
    first = given.families[0]
    scores[first.name][:] = 1e-3
    found = Candidates(given.families, scores, floor=0.25)
    ratio = first.size / sum(family.size for family in given.families)
    plan = found.plan(by_score(found)(ratio))
    assert {name: len(kept) for name, kept in plan.items()} == {first.name: 4}


def test_equal_errors(candidates: tuple[Graph, Candidates]) -> None:
    _, given = candidates
    tender, *others = (family.name for family in given.families)
    curves = {name: [(0.5, 0.1), (0.75, 0.2)] for name in others}
    curves[tender] = [(0.5, 10.0), (0.75, 20.0)]
    widths = by_error(given, curves)
    assert widths(0) == {family.name: family.size for family in given.families}
    assert all(widths(1)[f.name] == f.size / 4 for f in given.families)
    middle = widths(0.3)
    sizes = {family.name: family.size for family in given.families}
    assert middle[tender] > 0.95 * sizes[tender]
    assert all(middle[name] < 0.5 * sizes[name] for name in others)
    lefts = [given.left(given.plan(widths(step / 20))) for step in range(21)]
    assert lefts == sorted(lefts, reverse=True)


@pytest.mark.parametrize("target", [0.45, 0.35])
def test_widths_where_the_error_does_not_rise(
    candidates: tuple[Graph, Candidates], target: float
) -> None:
    _, given = candidates
    curves = {family.name: [(0.5, 1.0), (0.75, 0.9)] for family in given.families}
    found = fit(given, by_error(given, curves), given.left, target)
    assert target - 0.08 < found.left <= target


def test_knapsack_saves_enough_and_loses_least() -> None:
    items = {
        "a": [(0.25, 0.1, 1.0), (0.5, 0.2, 2.5)],
        "b": [(0.25, 0.1, 0.4), (0.5, 0.15, 5.0)],
        "c": [(0.5, 0.05, 9.0)],
    }
    assert choose(items, 0.1) == {"a": 0.0, "b": 0.25, "c": 0.0}
    assert choose(items, 0.3) == {"a": 0.5, "b": 0.25, "c": 0.0}
    assert choose(items, 9.9) == {"a": 0.5, "b": 0.5, "c": 0.5}
    assert choose({}, 0.5) == {}


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6, 1e9, 1e11])
def test_knapsack_loses_as_little_whatever_the_unit_of_what_is_saved(unit: float) -> None:
    items = {"a": [(0.5, 3.0 * unit, 0.04)], "b": [(0.5, 2.0 * unit, 0.05)]}
    assert choose(items, 2.0 * unit) == {"a": 0.5, "b": 0.0}


@pytest.mark.parametrize("target", [0.75, 0.3])
def test_with_coarse_widths_only_some_families_take_the_last_step(
    candidates: tuple[Graph, Candidates], target: float
) -> None:
    graph, fine = candidates
    coarse = Candidates(fine.families, fine.scores, align=8)
    left = macs_of(couple(graph)).left
    together = (coarse.plan(uniform(coarse)(step / 200)) for step in range(201))
    mildest = next(share for share in map(left, together) if share <= target)
    assert mildest < fit(coarse, uniform(coarse), left, target).left <= target
