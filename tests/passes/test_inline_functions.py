"""inline-functions: calls become nodes, also nested ones; costly constants are not copied."""

from __future__ import annotations

import pytest

from passes.inline_functions import InlineFunctions
from tests.asserting import apply_pass, assert_same_outputs, assert_valid, operators, parse

HEADER = '<ir_version: 10, opset_import: ["" : 17, "mine" : 1]>'


def model(calls: str, *functions: str) -> str:
    local = "\n".join(
        f'<domain: "mine", opset_import: ["" : 17, "mine" : 1]> {f}' for f in functions
    )
    return f"{HEADER} g (float[2] x) => (float[2] y) <float[2] w> {{ {calls} }} {local}"


def double(size: int = 1) -> str:
    values = ",".join(["2.0"] * size)
    return f"""twice (a) => (b)
    {{ c = Constant<value = float[{size}] {{{values}}}>() d = ReduceMax(c) b = Mul(a, d) }}"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (model("y = mine.twice(x)", double()), ["ReduceMax", "Mul"]),
        (
            model("a = mine.twice(x) y = mine.twice(a)", double()),
            ["ReduceMax", "Mul", "ReduceMax", "Mul"],
        ),
        (
            model("y = mine.four(x)", double(), "four (a) => (c) { b = mine.twice(a) c = Neg(b) }"),
            ["ReduceMax", "Mul", "Neg"],
        ),
        (model("y = mine.twice(x)", double(20000)), ["ReduceMax", "Mul"]),
        (model("a = mine.twice(x) y = mine.twice(a)", double(20000)), ["twice", "twice"]),
    ],
)
def test_calls(text: str, expected: list[str]) -> None:
    before = parse(text)
    graph = apply_pass(before, InlineFunctions())
    assert operators(graph) == expected
    assert len(graph.functions) == (1 if "twice" in expected else 0)
    graph.verify()
    assert_same_outputs(before, graph)


def test_weights_stay_where_they_are() -> None:
    before = parse(model("a = Add(x, w) y = mine.twice(a)", double()))
    graph = apply_pass(before, InlineFunctions())
    assert sorted(operators(graph)) == ["Add", "Mul", "ReduceMax"]
    assert "w" in graph.constants()
    assert_valid(graph)
