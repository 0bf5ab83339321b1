"""Two layers solved together: slopes, fixed points, never worse, and what is recovered."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir import Array, Graph, part
from graphopt.refit.blocks import Batch, Block
from graphopt.refit.goals import goal_of
from graphopt.refit.joint import solve_together
from graphopt.refit.layers import find_layer, layer_before
from tests.asserting import parse, run_model

CASES = {
    "residual": """(float[N,4,6,6] x) => (float[N,4,6,6] y)
        <float[6,4,3,3] w, float[6] b, float[4,6,3,3] v, float[4] c> {
        a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
        r = Relu(a)
        d = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r, v, c)
        s = Add(x, d)
        y = Relu(s) }""",
    "grouped": """(float[N,4,7,7] x) => (float[N,6,3,3] y)
        <float[6,2,3,3] w, float[6] b, float[6,1,3,3] v, float[6] c> {
        a = Conv<kernel_shape=[3,3], group=2, auto_pad="SAME_UPPER">(x, w, b)
        r = HardSwish(a)
        y = Conv<kernel_shape=[3,3], group=6, strides=[2,2]>(r, v, c) }""",
    "pooled": """(float[N,3,6,6] x) => (float[N,5] y)
        <float[8,3,3,3] w, float[8] b, float[5,8] v, float[5] c> {
        a = Conv<kernel_shape=[3,3]>(x, w, b)
        r = LeakyRelu(a)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        y = Gemm<transB=1, alpha=0.5, beta=2.0>(f, v, c) }""",
    "clamped": """(float[N,3,6,6] x) => (float[N,4,3,3] y)
        <float[5,3,1,1] w, float[5] b, float[4,5,3,3] v, float[4] c,
         float low = {0}, float high = {1}, int64[8] pads = {0,0,0,0,0,0,1,1}> {
        a = Conv(x, w, b)
        r = Clip(a, low, high)
        p = Pad(r, pads)
        s = Conv<strides=[2,2]>(p, v, c)
        y = Clip(s, low, high) }""",
    "linear": """(float[N,6] x) => (float[N,5] y)
        <float[6,4] w, float[4] b, float[4,5] v, float[5] c> {
        a = Gemm(x, w, b)
        y = Gemm(a, v, c) }""",
    "products": """(float[N,4,6] x) => (float[N,4,5] y)
        <float[6,7] w, float[7] b, float[7,5] v> {
        m = MatMul(x, w)
        a = Add(m, b)
        r = Gelu(a)
        p = MatMul(r, v)
        y = Relu(p) }""",
}


def case(name: str) -> Graph:
    domains = '<ir_version: 8, opset_import: ["" : 20]>'
    graph = Graph.load(parse(f"{domains} case {CASES[name]}"))
    for key, array in weights(graph).items():
        graph.set_constant(key, 0.5 * array.astype(np.float32))
    return graph


def weights(graph: Graph) -> dict[str, Array]:
    return {name: array for name, array in graph.constants().items() if name in "wbvc"}


def inputs(graph: Graph, count: int = 40, *, seed: int = 3) -> Array:
    sizes = [size for size in (graph.shape("x") or ())[1:] if isinstance(size, int)]
    return np.random.default_rng(seed).standard_normal((count, *sizes)).astype(np.float32)


def block_of(graph: Graph, original: Graph, x: Array) -> Block:
    """The two layers of a case, which should give what the original does."""
    layers = [layer for node in graph.nodes if (layer := find_layer(graph, node)) is not None]
    before = layer_before(graph, layers[1])
    assert before is not None
    assert before.output == layers[0].output
    goal = goal_of(graph, layers[1], {layer.output for layer in layers})
    (aim,) = run_model(part(original, ["x"], [goal.tensor]).to_model(), {"x": x})
    batches = [
        Batch((x[some],), aim[some]) for some in (slice(len(x) // 2), slice(len(x) // 2, None))
    ]
    return Block(graph, (layers[0], layers[1]), goal, batches, 0)


def disturbed(graph: Graph, *, seed: int = 1, size: float = 0.2) -> Graph:
    """The same graph with noise on its weights."""
    noisy, rng = graph.clone(), np.random.default_rng(seed)
    for key, array in weights(noisy).items():
        noise = size * rng.standard_normal(array.shape)
        noisy.set_constant(key, np.add(array, noise, dtype=np.float32, casting="same_kind"))
    return noisy


@pytest.mark.parametrize("name", CASES)
def test_descent_is_the_slope_of_the_loss(name: str) -> None:
    original = case(name)
    block = block_of(disturbed(original), original, inputs(original))
    start = block.matrices()
    value = block.value(start)
    rng = np.random.default_rng(7)
    for which in (0, 1):
        way = [np.zeros_like(matrix) for matrix in start]
        way[which] = 1e-3 * rng.standard_normal(start[which].shape)
        ends = [
            block.value((start[0] + sign * way[0], start[1] + sign * way[1])).loss
            for sign in (-1, 1)
        ]
        slope = -float((value.descent[which] * way[which]).sum())
        np.testing.assert_allclose((ends[1] - ends[0]) / 2, slope, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rounds", [1, 5, 30])
def test_never_worse_and_as_measured(name: str, rounds: int) -> None:
    """Also with noise as large as the weights; what is returned has the error that is said."""
    original = case(name)
    for seed in range(3):
        graph = disturbed(original, seed=seed, size=0.5 * (1 + seed))
        block = block_of(graph, original, inputs(original))
        matrices, before, after = solve_together(block, rounds)
        assert after <= before
        np.testing.assert_allclose(
            block.value(matrices).loss / block.energy, after, rtol=1e-5, atol=1e-9
        )


@pytest.mark.parametrize("name", CASES)
def test_a_block_that_is_right_stays_as_it_is(name: str) -> None:
    original = case(name)
    block = block_of(original.clone(), original, inputs(original))
    matrices, before, after = solve_together(block, 10)
    assert before == after < 1e-10
    for made, old in zip(matrices, block.matrices(), strict=True):
        np.testing.assert_array_equal(made, old)


@pytest.mark.parametrize(("name", "left"), [("residual", 0.05), ("linear", 1e-3), ("pooled", 0.02)])
def test_what_noise_has_broken_is_mended(name: str, left: float) -> None:
    original = case(name)
    graph = disturbed(original)
    _, before, after = solve_together(block_of(graph, original, inputs(original, 400)), 200)
    assert after < left * before


def test_a_layer_that_others_read_too_is_not_before() -> None:
    text = """case (float[N,4] x) => (float[N,3] y, float[N,4] a)
        <float[4,4] w, float[4] b, float[4,3] v> {
        a = Gemm(x, w, b)
        y = MatMul(a, v) }"""
    graph = Graph.load(parse(text))
    layer = find_layer(graph, graph.nodes[1])
    assert layer is not None
    assert layer_before(graph, layer) is None
