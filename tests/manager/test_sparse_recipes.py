"""The recipes that prune and share run from the first stage to the last, and reach their levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.manager import PassManager
from graphopt.packed import pack
from tests.asserting import parse

_NET = """g (float[N,12] x) => (float[N,4] y)
<float[12,32] w, float[32] b, float[32,24] v, float[24] c, float[24,4] u> {
    a = Gemm(x, w, b)
    r = Relu(a)
    h = Gemm(r, v, c)
    s = Relu(h)
    y = MatMul(s, u)
}"""


def _data(count: int = 60) -> Dataset:
    x = np.random.default_rng(1).standard_normal((count, 12)).astype(np.float32)
    return Dataset.from_arrays({"x": x}, labels=x[:, :4].argmax(1))


@pytest.mark.parametrize(
    ("recipe", "sparsity"),
    [
        ("agp", 0.7),
        ("deep-compression", 0.9),
        ("dynamic-network-surgery", 0.98),
        ("energy-aware", 0.5),
        ("han-2015", 0.9167),
        ("lottery-ticket", 0.8),
    ],
)
def test_recipe(recipe: str, sparsity: float, tmp_path: Path) -> None:
    graph = Graph.load(parse(_NET))
    result = PassManager(recipe).run(
        graph, data=_data(), measure=False, threads=1, failures=tmp_path
    )
    assert all(record.accepted for record in result.report.passes), result.report
    weights = [a for a in result.graph.constants().values() if a.ndim == 2]
    total = 12 * 32 + 32 * 24 + 24 * 4
    left = sum(int(np.count_nonzero(weight)) for weight in weights)
    assert left <= round((1 - sparsity) * total) + 3, "removing dead channels takes some more"
    before, after = (pack(g.to_bytes(), tmp_path / "m.gopt").size for g in (graph, result.graph))
    assert after < before
