"""graphopt.rewrite.windows: what a Slice takes of each axis."""

from __future__ import annotations

import pytest

from graphopt.ir import Graph
from graphopt.rewrite.windows import forward_slices
from tests.asserting import parse

BOUNDS = """b = Constant <value_ints=[1,-2]> () e = Constant <value_ints=[4,99]> ()
    a = Constant <value_ints=[0,-1]> () s = Constant <value_ints=[1,2]> ()
    back = Constant <value_ints=[-1,1]> ()"""

SLICES = {
    "y = Slice (x, b, e, a, s)": {0: slice(1, 4, 1), 2: slice(-2, 99, 2)},
    "y = Slice (x, b, e, a)": {0: slice(1, 4, 1), 2: slice(-2, 99, 1)},
    "y = Slice (x, b, e)": {0: slice(1, 4, 1), 1: slice(-2, 99, 1)},
    'y = Slice (x, b, e, "", s)': {0: slice(1, 4, 1), 1: slice(-2, 99, 2)},
    "y = Slice (x, b, e, a, back)": None,
    "y = Slice (x, b, n, a)": None,
}


@pytest.mark.parametrize(("body", "found"), SLICES.items(), ids=SLICES.keys())
def test_slices(body: str, found: dict[int, slice] | None) -> None:
    head = "main (float[5,6,7] x, int64[2] n) => (float[p,q,r] y)"
    graph = Graph.load(parse(f"{head} {{ {BOUNDS} {body} }}"))
    assert forward_slices(graph, graph.nodes[-1]) == found


def test_bounds_were_attributes() -> None:
    text = """main (float[5,6] x) => (float[p,q] y) {
        y = Slice <starts=[1], ends=[3], axes=[-1]> (x) }"""
    graph = Graph.load(parse(text, opset=9))
    assert forward_slices(graph, graph.nodes[0]) == {1: slice(1, 3, 1)}
