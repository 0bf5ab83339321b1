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
    run_model,
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


def test_two_outputs_of_one_tensor_keep_both_names() -> None:
    then = "then_branch = t () => (float[2] p, float[2] p) { p = Neg(a) }"
    other = "else_branch = e () => (float[2] q, float[2] r) { q = Exp(a) r = Abs(a) }"
    model = parse(
        f"""g (float[2] x) => (float[2] y, float[2] z) <bool c = {{1}}>
        {{ a = Exp(x) y, z = If(c) <{then}, {other}> }}"""
    )
    graph = apply_pass(model, InlineBranches())
    assert operators(graph) == ["Exp", "Neg", "Identity"]
    assert_valid(graph)
    x = np.array([0.5, -1.0], np.float32)
    for found in run_model(graph, {"x": x}):  # ONNX Runtime mixes the two up in the original
        np.testing.assert_allclose(found, -np.exp(x), rtol=1e-6)


def test_a_condition_that_is_an_input_stays() -> None:
    head = "g (float[2] x, bool c) => (float[2] y) <float[2] w>"
    assert_unchanged(f"{head} {{ a = Exp(x) y = If(c) <{THEN}, {ELSE}> }}", InlineBranches())


SQUEEZED = """g (float[N,2,T] x) => (float[N,3] y)
    <float[2,3] w, int64[1] one = {1}, int64[1] last = {-1}, int64 two = {2}>
    { s = Shape(x) d = Gather(s, last) c = Equal(d, one)
      r = If(c) <then_branch = t () => (float[N,2] p) { p = Squeeze(x, last) },
                 else_branch = e () => (float[N,2,T] q) { q = Abs(x) }>"""


@pytest.mark.parametrize("swapped", [False, True])
def test_the_branch_with_which_the_model_can_run(swapped: bool) -> None:
    text = SQUEEZED
    if swapped:
        text = text.replace("c = Equal", "o = Equal").replace("r = If", "c = Not(o) r = If")
        text = text.replace("then_", "new_").replace("else_", "then_").replace("new_", "else_")
    model = parse(f"{text} y = Gemm(r, w) }}")
    graph = apply_pass(model, InlineBranches())
    assert operators(graph) == ["Squeeze", "Gemm"]
    assert_valid(graph)
    feeds = {"x": np.ones((4, 2, 1), np.float32)}
    assert_same_outputs(model, graph, feeds=feeds)


def test_a_later_branch_follows_before_the_earlier_is_judged() -> None:
    """The second If repairs what the first may do, so both of its branches can run."""
    repair = """k = Shape(r) n = Size(k) h = Equal(n, two)
        z = If(h) <then_branch = t2 () => (float[N,2] p2) { p2 = Neg(r) },
                   else_branch = e2 () => (float[N,2] q2) {
                       q2 = ReduceMean<axes=[2], keepdims=0>(r) }>
        y = Gemm(z, w) }"""
    graph = apply_pass(parse(f"{SQUEEZED} {repair}"), InlineBranches())
    assert operators(graph).count("If") == 2


@pytest.mark.parametrize("end", ["y = MatMul(r, w)", "u = Unsqueeze(r, last) y = Gemm(u, w)"])
def test_where_both_branches_run_or_neither_does_the_choice_stays(end: str) -> None:
    graph = apply_pass(parse(f"{SQUEEZED} {end} }}"), InlineBranches())
    assert operators(graph).count("If") == 1


EITHER = """then_branch = t () => (float[2,4] p) { p = Squeeze(a, i2) },
else_branch = e () => (float[2,4,M] q) { q = Identity(a) }"""


@pytest.mark.parametrize(
    ("reader", "rank"),
    [
        ("u = Unsqueeze(b, i0) y, h, s = LSTM<hidden_size=1>(u, w, r)", 4),
        ("u = Relu(b) y = Gemm(u, k)", 2),
    ],
)
def test_a_branch_that_what_follows_cannot_read(reader: str, rank: int) -> None:
    """The sizes that the test asks for stay unknown, but only one branch leads on."""
    head = f"""g (float[2,4,M] x) => (float[{",".join("abcd"[:rank])}] y)
    <int64[1] i0 = {{0}}, int64[1] i1 = {{1}}, int64[1] i2 = {{2}}, int64 last = {{2}},
     float[1,4,4] w, float[1,4,1] r, float[4,3] k>"""
    test = "s0 = Shape(a) n = Gather(s0, i2) c = Equal(n, i1)"
    before = f"{head} {{ a = Exp(x) {test} b = If(c) <{EITHER}> {reader} }}"
    feeds = {"x": np.ones((2, 4, 1), np.float32)}
    graph = apply_pass(parse(before), InlineBranches())
    assert "If" not in operators(graph)
    assert "Shape" not in operators(graph)
    assert_valid(graph)
    assert_same_outputs(parse(before), graph, feeds=feeds)


def test_a_branch_that_any_reader_accepts_stays() -> None:
    head = "g (float[2,4,M] x) => (float[a,b] y) <int64[1] i1 = {1}, int64[1] i2 = {2}>"
    test = "s0 = Shape(a) n = Gather(s0, i2) c = Equal(n, i1)"
    text = f"{head} {{ a = Exp(x) {test} b = If(c) <{EITHER}> y = Relu(b) }}"
    assert_unchanged(text, InlineBranches())
