"""fold-shapes: targets of dynamic tensors as constants, and those that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir import Graph
from passes.fold_shapes import FoldShapes
from tests.asserting import apply_pass, assert_same_outputs, assert_unchanged, assert_valid, parse

NUMBERS = """int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4},
int64[1] many = {-1}, int64[3] tail = {3, 2, 8}, int64[3] half = {3, 2, 4}, int64[2] chw = {6, 8}"""


def dynamic(body: str, signature: str, rank: int) -> str:
    """A computed target for `signature`, and an output of which only the rank is declared."""
    output = f"float[{','.join('abcd'[:rank])}] y"
    return f"g ({signature}) => ({output}) <{NUMBERS}> {{ s = Shape(x) {body} }}"


def fold(text: str) -> Graph:
    """Run the pass and check everything but the values of its constants."""
    model = parse(text)
    graph = apply_pass(model, FoldShapes())
    assert_valid(graph)
    assert_same_outputs(model, graph)
    return graph


@pytest.mark.parametrize(
    ("body", "target"),
    [
        ("n = Slice(s, zero, one) t = Concat<axis=0>(n, tail)", [0, 3, 2, 8]),
        ("n = Slice(s, zero, one) t = Concat<axis=0>(n, many)", [0, 48]),
        ("n = Slice(s, zero, one) m = Mul(n, two) t = Concat<axis=0>(m, half)", [-1, 3, 2, 4]),
        ("n = Slice(s, zero, one) t = Concat<axis=0>(chw, n)", [6, 8, -1]),
        ("n = Slice(s, zero, two) t = Concat<axis=0>(n, many)", [0, 6, 8]),
    ],
)
def test_reshape(body: str, target: list[int]) -> None:
    graph = fold(dynamic(body + " y = Reshape(x, t)", "float[N,6,4,2] x", len(target)))
    [node] = graph.nodes
    found = graph.constant(node.inputs[1].name)
    assert found is not None
    assert found.tolist() == target


def test_a_zero_that_was_a_size_becomes_a_copy() -> None:
    body = "n = Slice(s, zero, one) t = Concat<axis=0>(n, tail) y = Reshape<allowzero=1>(x, t)"
    [node] = fold(dynamic(body, "float[N,6,4,2] x", 4)).nodes
    assert "allowzero" not in node.attrs


def test_reshape_with_two_computed_sizes_stays() -> None:
    body = """n = Slice(s, zero, one) m = Slice(s, one, two) a = Mul(n, two) b = Div(m, two)
              t = Concat<axis=0>(a, b) y = Reshape(x, t)"""
    assert_unchanged(dynamic(body, "float[N,M] x", 2), FoldShapes())


def test_reshape_to_what_another_input_says_stays() -> None:
    text = f"""g (float[N,6] x, int64[2] t) => (float[a,b] y) <{NUMBERS}> {{ y = Reshape(x, t) }}"""
    assert_unchanged(text, FoldShapes())


def test_expand() -> None:
    body = "n = Slice(s, zero, one) t = Concat<axis=0>(n, four, two) y = Expand(x, t)"
    graph = fold(dynamic(body, "float[N,1,2] x", 3))
    [node] = graph.nodes
    found = graph.constant(node.inputs[1].name)
    assert found is not None
    assert found.tolist() == [1, 4, 2]


def test_expand_to_a_new_size_stays() -> None:
    body = "n = Slice(s, zero, one) t = Concat<axis=0>(n, four) y = Expand(v, t)"
    text = dynamic(body, "float[N,6] x", 2).replace("int64[1] zero", "float[1,4] v, int64[1] zero")
    assert_unchanged(text, FoldShapes())


@pytest.mark.parametrize(("bounds", "end"), [("one, n", np.iinfo(np.int64).max), ("zero, two", 2)])
def test_slice(bounds: str, end: int) -> None:
    body = f"n = Slice(s, zero, one) y = Slice(x, {bounds}, zero)"
    graph = fold(dynamic(body, "float[N,6] x", 2))
    [node] = graph.nodes
    found = graph.constant(node.inputs[2].name)
    assert found is not None
    assert found.tolist() == [end]


@pytest.mark.parametrize(
    "body",
    [
        "n = Slice(s, zero, one) y = Slice(x, zero, n, one)",
        "n = Slice(s, zero, one) y = Slice(x, n, zero, zero, many)",
    ],
)
def test_slice_up_to_another_size_or_backwards_stays(body: str) -> None:
    assert_unchanged(dynamic(body, "float[N,6] x", 2), FoldShapes())


def test_a_slice_by_short_integers_keeps_their_type() -> None:
    more = "int64[1] i = {0}, int32[1] from = {1}, int32[1] axis = {0}"
    body = "s = Shape(x) n = Gather(s, i) end = Cast<to=6>(n) y = Slice(x, from, end, axis)"
    graph = fold(f"g (float[N,6] x) => (float[a,6] y) <{more}> {{ {body} }}")
    assert [node.op for node in graph.nodes] == ["Slice"]
