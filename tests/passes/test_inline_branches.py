"""inline-branches: which If goes, and that what it carried arrives whole."""

from __future__ import annotations

import numpy as np
import pytest

from passes.inline_branches import InlineBranches
from tests.asserting import (
    apply_pass,
    assert_rewrites,
    assert_same_outputs,
    assert_unchanged,
    assert_valid,
    operators,
    parse,
)

THEN = "then_branch = t () => (float[2] p) { p = Add(a, w) }"
ELSE = "else_branch = e () => (float[2] q) { h = Mul(a, w) q = Neg(h) }"


@pytest.mark.parametrize(("yes", "after"), [(1, "i = Add(a, w)"), (0, "h = Mul(a, w) i = Neg(h)")])
@pytest.mark.parametrize(("last", "output"), [("y = Exp(i)", "i"), ("", "y")])
def test_the_branch_taken(yes: int, after: str, last: str, output: str) -> None:
    head = f"g (float[2] x) => (float[2] y) <float[2] w, bool c = {{{yes}}}>"
    before = f"{head} {{ a = Exp(x) {output} = If(c) <{THEN}, {ELSE}> {last} }}"
    after = after.replace("i =", f"{output} =")
    assert_rewrites(before, f"{head} {{ a = Exp(x) {after} {last} }}", InlineBranches())


def test_a_condition_that_follows_from_a_shape() -> None:
    head = "g (float[N,2] x) => (float[N,2] y) <float[2] w, int64 two = {2}>"
    test = "r = Shape(x) s = Size(r) c = Equal(s, two)"
    branches = f"{THEN}, {ELSE}".replace("float[2] p", "float[N,2] p").replace(
        "float[2] q", "float[N,2] q"
    )
    before = f"{head} {{ a = Exp(x) {test} y = If(c) <{branches}> }}"
    assert_rewrites(before, f"{head} {{ a = Exp(x) y = Add(a, w) }}", InlineBranches())


def test_nested_branches_follow() -> None:
    inner = "then_branch = t2 () => (float[2] p) { p = Add(a, w) }"
    inner += ", else_branch = e2 () => (float[2] q) { q = Sub(a, w) }"
    outer = f"then_branch = t () => (float[2] r) {{ b = Neg(a) s = If(c) <{inner}> r = Add(s, b) }}"
    head = "g (float[2] x) => (float[2] y) <float[2] w, bool c = {1}>"
    before = f"{head} {{ a = Exp(x) y = If(c) <{outer}, {ELSE}> }}"
    after = f"{head} {{ a = Exp(x) b = Neg(a) s = Add(a, w) y = Add(s, b) }}"
    assert_rewrites(before, after, InlineBranches())


def test_a_body_inside_moves_whole() -> None:
    """The inner If stays an If; what it reads is still found after further edits."""
    inner = "then_branch = t2 () => (float[2] p) { k = Add(b, w) p = Neg(k) }"
    inner += ", else_branch = e2 () => (float[2] q) { q = Sub(b, w) }"
    outer = f"then_branch = t () => (float[2] r) {{ b = Neg(a) r = If(d) <{inner}> }}"
    model = parse(
        f"""g (float[2] x, bool d) => (float[2] y) <float[2] w, bool c = {{1}}>
        {{ a = Exp(x) y = If(c) <{outer}, {ELSE}> }}"""
    )
    graph = apply_pass(model, InlineBranches())
    assert operators(graph) == ["Exp", "Neg", "If"]
    assert [node.op for node in graph.all_nodes()][3:] == ["Add", "Neg", "Sub"]
    assert len(graph.consumers("b")) == 2
    assert len(graph.consumers("w")) == 2
    assert_valid(graph)
    for flag in (False, True):
        feeds = {"x": np.ones(2, np.float32), "d": np.array(flag)}
        assert_same_outputs(model, graph, feeds=feeds)


@pytest.mark.parametrize("result", ["w", "a"])
def test_a_branch_that_returns_what_is_outside(result: str) -> None:
    then = f"then_branch = t () => (float[2] p) {{ p = Identity({result}) }}"
    model = parse(
        f"""g (float[2] x) => (float[2] y) <float[2] w, bool c = {{1}}>
        {{ a = Exp(x) y = If(c) <{then}, {ELSE}> }}"""
    )
    graph = apply_pass(model, InlineBranches())
    assert "If" not in operators(graph)
    assert graph.outputs == ("y",)
    assert_valid(graph)
    assert_same_outputs(model, graph)


def test_a_condition_that_is_an_input_stays() -> None:
    head = "g (float[2] x, bool c) => (float[2] y) <float[2] w>"
    assert_unchanged(f"{head} {{ a = Exp(x) y = If(c) <{THEN}, {ELSE}> }}", InlineBranches())
