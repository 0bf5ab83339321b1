"""remove-channels: options, widths, and the promise."""

from __future__ import annotations

import pytest

from graphopt.errors import BudgetError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from passes.remove_channels import RemoveChannels
from tests.asserting import apply_pass, assert_same_outputs, assert_valid, parse, random_inputs
from tests.coupling.test_removal import CHAIN


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


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0])
def test_bad_ratio(ratio: float) -> None:
    with pytest.raises(RecipeError, match="ratio must be between 0 and 1"):
        RemoveChannels(ratio=ratio)


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="align must be at least 1"):
        RemoveChannels(align=0)
    with pytest.raises(RecipeError, match="importance must be one of .*l1, l2"):
        RemoveChannels(importance="taste")


def test_nothing_to_remove_says_what_holds_it() -> None:
    text = "held (float[2,3] x) => (float[2,6] y) <float[3,6] w> { y = MatMul(x, w) }"
    with pytest.raises(BudgetError, match="is held by input 'x'"):
        apply_pass(parse(text), RemoveChannels())
