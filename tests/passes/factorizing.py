"""A small network to factorize, inputs for it, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.passbase import Context
from passes.factorize import Factorize
from tests.asserting import assert_valid, parse, run_model

__all__ = ["error", "inputs", "layers", "network", "run"]

NETWORK = """network (float[N,8,12,12] x) => (float[N,10] y)
<float[32,8,3,3] w0, float[32] b0, float[32,32,3,3] w1, float[32,32,1,1] w2, float[32] b2,
 float[32,64] w3, float[64] b3, float[64,10] w4> {
    c0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0, b0)
    r0 = Relu(c0)
    c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(r0, w1)
    r1 = Relu(c1)
    c2 = Conv<kernel_shape=[1,1]>(r1, w2, b2)
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    g = Gemm(f, w3, b3)
    r3 = Relu(g)
    y = MatMul(r3, w4)
}"""


def network(*, rank: int | None = None) -> Graph:
    """A small network; with a rank, its weights have no more, but for a little noise."""
    graph = Graph.load(parse(NETWORK))
    for name, array in graph.constants().items():
        new = array / np.sqrt(max(array[0].size, 1))
        if rank is not None and array.ndim > 1:
            left, values, right = np.linalg.svd(new.reshape(len(new), -1), full_matrices=False)
            values[rank:] *= 0.01
            new = ((left * values) @ right).reshape(array.shape)
        graph.set_constant(name, np.asarray(new, np.float32))
    return graph


def inputs(count: int = 64, *, seed: int = 3) -> Dataset:
    """Images whose channels mix three."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((8, 3))
    x = np.einsum("ab,nbhw->nahw", mixing, rng.standard_normal((count, 3, 12, 12)))
    return Dataset.from_arrays({"x": x.astype(np.float32)})


def run(graph: Graph, step: Factorize, data: Dataset | None = None) -> tuple[Graph, Context]:
    made, context = graph.clone(), Context(original=graph, calibration=data)
    step.run(made, context)
    made.prune()
    assert_valid(made)
    return made, context


def error(made: Graph, graph: Graph) -> float:
    (feeds,) = inputs(128, seed=9).batches(128)
    wanted, got = run_model(graph, feeds)[0], run_model(made, feeds)[0]
    return float(np.mean((wanted - got) ** 2) / wanted.var())


def layers(context: Context) -> Mapping[str, Mapping[str, object]]:
    found = context.notes["layers"]
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]
