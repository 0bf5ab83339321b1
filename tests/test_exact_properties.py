"""What every exact pass keeps, on random networks: outputs, validity, and its own result."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import HealthCheck, given, settings

from graphopt.ir import Graph
from graphopt.passbase import Context, Pass, Promise
from passes import CATALOG
from tests.asserting import assert_same_outputs, assert_valid, parse
from tests.strategies import networks

_QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _pass_of(name: str) -> type[Pass]:
    module, cls = CATALOG[name].split(":")
    found: type[Pass] = getattr(importlib.import_module(module), cls)
    return found


EXACT = {
    name: found
    for name, found in ((name, _pass_of(name)) for name in CATALOG)
    if found.promise is Promise.EXACT and not found.needs
}
"""Those that need no inputs, by name."""


def run(graph: Graph, *steps: Pass) -> None:
    for step in steps:
        step.run(graph, Context(original=graph.clone()))
    graph.prune()


@pytest.mark.parametrize("name", EXACT)
@settings(_QUICK, max_examples=6)
@given(text=networks())
def test_outputs_stay_and_a_second_run_finds_nothing(name: str, text: str) -> None:
    step = EXACT[name]()
    model = parse(text)
    graph = Graph.load(model)
    run(graph, step)
    assert_same_outputs(model, graph)
    assert_valid(graph)
    before = graph.fingerprint()
    run(graph, step)
    assert graph.fingerprint() == before


@settings(_QUICK, max_examples=20)
@given(text=networks())
def test_all_together_settle(text: str) -> None:
    model = parse(text)
    graph = Graph.load(model)
    nodes = len(graph.nodes)
    for _ in range(10):
        before = graph.fingerprint()
        run(graph, *(found() for found in EXACT.values()))
        if graph.fingerprint() == before:
            break
    else:
        pytest.fail("the exact passes undo each other")
    assert len(graph.nodes) <= nodes
    assert_same_outputs(model, graph)
    assert_valid(graph)
