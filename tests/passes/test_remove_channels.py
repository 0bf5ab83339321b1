"""remove-channels: options, widths, and the promise."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from graphopt.cost import cost
from graphopt.coupling.importance import IMPORTANCES
from graphopt.data import Dataset
from graphopt.errors import BudgetError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.refit import noted_traces
from passes.remove_channels import RemoveChannels
from tests.asserting import apply_pass, assert_same_outputs, assert_valid, parse, random_inputs
from tests.coupling.test_removal import CHAIN

Allocation = Literal["uniform", "global", "sensitivity"]


def test_cut_equals_reference() -> None:
    model = parse(CHAIN)
    before, graph = Graph.load(model), Graph.load(model)
    context = Context(original=before)
    step = RemoveChannels(ratio=0.5)
    step.run(graph, context)
    reference = step.reference(before, context)
    assert_valid(graph)
    assert_same_outputs(reference.to_model(), graph, feeds=random_inputs(model))
    assert graph.shape("w") == (4, 3, 3, 3)
    assert graph.shape("v") == (3, 4, 1, 1)
    channels = context.notes["channels"]
    assert isinstance(channels, dict)
    assert set(channels) == {"w", "b", "v", "u"}


@pytest.mark.parametrize(("ratio", "align", "width"), [(0.25, 1, 6), (0.6, 4, 4), (0.99, 1, 1)])
def test_widths(ratio: float, align: int, width: int) -> None:
    graph = apply_pass(parse(CHAIN), RemoveChannels(ratio=ratio, align=align))
    assert graph.shape("w") == (width, 3, 3, 3)


WIDE = """wide (float[N,3,4,4] x) => (float[N,2,4,4] y)
<float[72,3,1,1] w, float[72,72,1,1] v, float[2,72,1,1] u> {
    a = Conv(x, w)
    b = Conv(a, v)
    y = Conv(b, u)
}"""


def test_widths_follow_what_is_fast_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.remove_channels.fast_multiple", lambda progress: 16)
    graph = apply_pass(parse(WIDE), RemoveChannels(ratio=0.5))
    assert graph.shape("v") == (48, 32, 1, 1)
    graph = apply_pass(parse(WIDE), RemoveChannels(ratio=0.5, align=1))
    assert graph.shape("v") == (36, 36, 1, 1)


def test_nothing_is_timed_where_every_width_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(progress: object) -> int:
        raise AssertionError("widths were timed")

    monkeypatch.setattr("passes.remove_channels.fast_multiple", timed)
    fits = parse(WIDE.replace("72", "64"))
    assert apply_pass(fits, RemoveChannels(ratio=0.5)).shape("v") == (32, 32, 1, 1)
    small = parse(WIDE.replace("72", "18"))
    assert apply_pass(small, RemoveChannels(ratio=0.5)).shape("v") == (9, 9, 1, 1)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0])
def test_bad_ratio(ratio: float) -> None:
    with pytest.raises(RecipeError, match="ratio must be between 0 and 1"):
        RemoveChannels(ratio=ratio)


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="align must be at least 1"):
        RemoveChannels(align=0)
    with pytest.raises(RecipeError, match=r"importance must be one of .*l1, l2"):
        RemoveChannels(importance="taste")


def test_nothing_to_remove_says_what_holds_it() -> None:
    text = "held (float[2,3] x) => (float[2,6] y) <float[3,6] w> { y = MatMul(x, w) }"
    with pytest.raises(BudgetError, match="is held by input 'x'"):
        apply_pass(parse(text), RemoveChannels())


def _widths(step: RemoveChannels, data: Dataset | None = None) -> tuple[dict[str, int], Context]:
    graph = Graph.load(parse(CHAIN))
    context = Context(original=graph.clone(), calibration=data)
    step.run(graph, context)
    shapes = {name: graph.shape(name) for name in ("w", "v")}
    return {name: int((shape or ())[0]) for name, shape in shapes.items()}, context  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("families", "widths"),
    [(("w",), {"w": 4, "v": 6}), (("!w",), {"w": 8, "v": 3}), (("*", "!v"), {"w": 4, "v": 6})],
)
def test_families_by_name(families: tuple[str, ...], widths: dict[str, int]) -> None:
    assert _widths(RemoveChannels(families=families))[0] == widths


_OF_NORMS = {"batch-norm-scale", "taylor-gate"}  # the graph has none
_APPLICABLE = sorted(set(IMPORTANCES) - _OF_NORMS)


@pytest.mark.parametrize(
    ("importance", "allocation"),
    [
        *((name, "global") for name in _APPLICABLE),
        ("mean-activation", "sensitivity"),
        ("l2", "uniform"),
    ],
)
def test_every_criterion_meets_a_budget(importance: str, allocation: Allocation) -> None:
    rng = np.random.default_rng(0)
    data = Dataset.from_arrays({"x": rng.standard_normal((48, 3, 8, 8)).astype(np.float32)})
    step = RemoveChannels(macs=0.6, importance=importance, allocation=allocation)
    widths, context = _widths(step, data)
    assert sum(widths.values()) < 14
    left = context.notes["left"]
    assert isinstance(left, float)
    assert 0.3 < left <= 0.6
    assert "unmet" not in context.notes


def test_floor_bounds_a_budget() -> None:
    widths, context = _widths(RemoveChannels(bytes=0.01, floor=0.5))
    assert widths == {"w": 4, "v": 3}
    assert "unmet" in context.notes
    assert _widths(RemoveChannels(bytes=0.01, floor=0.0))[0] == {"w": 1, "v": 1}


def test_families_that_cannot_be_scored_stay_whole() -> None:
    data = Dataset.from_arrays({"x": np.ones((8, 3, 8, 8), np.float32)})
    widths, context = _widths(RemoveChannels(importance="apoz"), data)
    assert widths == {"w": 4, "v": 6}
    assert context.notes["unscored"] == {IMPORTANCES["apoz"].lacks: ["v"]}


def test_what_stays_is_noted_for_a_refit() -> None:
    graph = apply_pass(parse(CHAIN), RemoveChannels(ratio=0.5))
    kept = noted_traces(graph)
    assert sorted(kept) == ["a", "c", "f", "p", "r"]
    assert len(kept["r"][1]) == 4


def test_fractions_of_the_original() -> None:
    """A second cut counts by what there was at first; there may be nothing left for it to do."""
    original = Graph.load(parse(CHAIN))
    graph, context = original.clone(), Context(original=original)
    for macs, least in ((0.7, 0.5), (0.6, 0.5), (0.65, 0.5), (0.4, 0.25)):
        before = cost(graph).macs
        step = RemoveChannels(macs=macs, of="original", importance="l2")
        step.run(graph, context)
        assert least < cost(graph).macs / cost(original).macs <= macs
        assert macs != 0.65 or cost(graph).macs == before
