"""remove-dead-code: nodes, constants and results that nobody needs."""

from __future__ import annotations

import pytest

from passes.remove_dead_code import RemoveDeadCode
from tests.asserting import apply_pass, assert_rewrites, assert_unchanged, assert_valid, parse


def test_dead_nodes_and_their_constants_go() -> None:
    before = """g (float[2] x) => (float[2] y) <float[2] w, float[2] v>
    { a = Add(x, w) b = Mul(a, v) y = Neg(x) }"""
    graph = assert_rewrites(
        before, "g (float[2] x) => (float[2] y) { y = Neg(x) }", RemoveDeadCode()
    )
    assert graph.constants() == {}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("y, i = MaxPool<kernel_shape=[2,2]>(x)", "y = MaxPool<kernel_shape=[2,2]>(x)"),
        ("y, m = Dropout(x)", "y = Dropout(x)"),
    ],
)
def test_unread_results_go(before: str, after: str) -> None:
    head = "g (float[1,2,4,4] x) => (float[1,2,p,q] y)"
    assert_rewrites(f"{head} {{ {before} }}", f"{head} {{ {after} }}", RemoveDeadCode())


@pytest.mark.parametrize(
    ("read", "left"),
    [("y", ["y"]), ("h", ["", "h"]), ("c", ["", "", "c"])],
)
def test_states_of_lstm(read: str, left: list[str]) -> None:
    rank = "5,1,1,2" if read == "y" else "1,1,2"
    text = f"""g (float[5,1,3] x) => (float[{rank}] z) <float[1,8,3] w, float[1,8,2] r>
    {{ y, h, c = LSTM<hidden_size=2>(x, w, r) z = Neg({read}) }}"""
    graph = apply_pass(parse(text), RemoveDeadCode())
    assert [tensor.name for tensor in graph.nodes[0].outputs] == left
    assert_valid(graph)


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("y, i = MaxPool<kernel_shape=[2,2]>(x) z = Cast<to=1>(i)", 17),
        ("y, z = Split<axis=1>(x, two)", 17),
        ("y, z = Split<axis=1>(x, two) o = Neg(y)", 17),
        ("y, a, b, c, d = BatchNormalization(x, w, w, w, var)", 9),
    ],
)
def test_results_that_are_needed_stay(body: str, opset: int) -> None:
    outputs = "float[] o" if "o =" in body else "float[] y"
    outputs += ", float[] z" if "z =" in body and "o =" not in body else ""
    text = f"""g (float[1,2,4,4] x) => ({outputs})
    <int64[2] two = {{1,1}}, float[2] w, float[2] var> {{ {body} }}"""
    assert_unchanged(text, RemoveDeadCode(), opset=opset)
