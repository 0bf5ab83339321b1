"""Graph.objection: nodes that cannot run whatever the model is given."""

from __future__ import annotations

import pytest

from graphopt.ir import Graph
from tests.asserting import parse

HEAD = "main (float[N,2,T] x, float[T,2] z) => (float[a,b] y) <float[2,3] w, float[5] v>"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Gemm (x, w)", "rank 2"),
        ("y = MatMul (z, x)", None),
        ("y = Add (w, v)", "Incompatible dimensions"),
        ("y = Gemm (z, w)", None),
        ("y = custom.Anything (x, w)", None),
    ],
)
def test_reasons(body: str, reason: str | None) -> None:
    text = f'<ir_version: 10, opset_import: ["" : 17, "custom" : 1]>\n{HEAD} {{ {body} }}'
    graph = Graph.load(parse(text))
    found = graph.objection(graph.nodes[-1])
    assert found is None if reason is None else reason in str(found)
