"""equalize: ranges meet, outputs stay, and what is not homogeneous is left alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.quantize.references import noted_references
from passes.equalize import Equalize
from tests.asserting import apply_pass, assert_same_outputs, assert_valid, parse, run_model

PAIR = """pair (float[N,3,8,8] x) => (float[N,5,8,8] y)
<float[6,3,3,3] w, float[6] b, float[5,6,1,1] v> {{
    c = Conv<pads=[1,1,1,1]>(x, w, b)
    r = {between}
    y = Conv(r, v)
}}"""


def uneven(text: str, *, opset: int = 17) -> Graph:
    """A network whose first layer has channels of very different sizes."""
    graph = Graph.load(parse(text, opset=opset))
    weight, bias = (graph.constants()[name].astype(np.float32) for name in ("w", "b"))
    factors = np.logspace(-2, 2, len(bias), dtype=np.float32)
    graph.set_constant("w", weight * factors.reshape(-1, *[1] * (weight.ndim - 1)))
    graph.set_constant("b", bias * factors)
    return graph


def ranges(array: npt.NDArray[np.generic], axis: int) -> npt.NDArray[np.float32]:
    rest = tuple(place for place in range(array.ndim) if place != axis)
    return np.asarray(np.abs(array.astype(np.float32)).max(axis=rest), np.float32)


def equalized(before: Graph, step: Equalize | None = None) -> Graph:
    graph = before.clone()
    (step or Equalize()).run(graph, Context(original=before))
    assert_valid(graph)
    feeds = {
        name: np.random.default_rng(1)
        .standard_normal([n if isinstance(n, int) else 2 for n in graph.shape(name) or ()])
        .astype(np.float32)
        for name in graph.inputs
    }
    assert_same_outputs(before.to_model(), graph, feeds=feeds)
    return graph


@pytest.mark.parametrize(
    "between",
    [
        "Relu(c)", "LeakyRelu<alpha=0.2>(c)", "Identity(c)", "MaxPool<kernel_shape=[1,1]>(c)",
        "Add(c, c)", "Transpose<perm=[0,1,3,2]>(c)",
    ],
)  # fmt: skip
def test_ranges_meet(between: str) -> None:
    graph = equalized(uneven(PAIR.format(between=between)))
    constants = graph.constants()
    np.testing.assert_allclose(ranges(constants["w"], 0), ranges(constants["v"], 1), rtol=1e-3)


@pytest.mark.parametrize(
    "between", ["Sigmoid(c)", "HardSwish(c)", "Mul(c, c)", "Softmax<axis=1>(c)", "Elu(c)"]
)
def test_what_is_not_homogeneous_stays(between: str) -> None:
    before = uneven(PAIR.format(between=between))
    assert equalized(before).fingerprint() == before.fingerprint()


@pytest.mark.parametrize(("high", "moves"), [("6.0", False), ("3.4028234e38", True)])
def test_clip_only_where_it_is_a_relu(high: str, moves: bool) -> None:
    text = f"""clip (float[N,3,8,8] x) => (float[N,5,8,8] y)
    <float[6,3,1,1] w, float[6] b, float[5,6,1,1] v, float low = {{0.0}}, float high = {{{high}}}>
    {{ c = Conv(x, w, b)  r = Clip(c, low, high)  y = Conv(r, v) }}"""
    before = uneven(text)
    assert (equalized(before).fingerprint() != before.fingerprint()) == moves


def test_through_a_depthwise_layer_both_sides_move_apart() -> None:
    text = """deep (float[N,3,8,8] x) => (float[N,5,8,8] y)
    <float[6,3,1,1] w, float[6] b, float[6,1,3,3] d, float[6] e, float[5,6,1,1] v> {
        c = Conv(x, w, b)  r = Relu(c)
        f = Conv<group=6, pads=[1,1,1,1]>(r, d, e)  q = Relu(f)
        y = Conv(q, v)
    }"""
    constants = equalized(uneven(text)).constants()
    sizes = [ranges(constants["w"], 0), ranges(constants["d"], 0), ranges(constants["v"], 1)]
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=1e-3)
    np.testing.assert_allclose(sizes[1], sizes[2], rtol=1e-3)


RESIDUAL = """residual (float[N,3,8,8] x, float[6,1,1] s) => (float[N,5,8,8] y)
<float[6,3,1,1] w, float[6] b, float[4,6,3,3] u, float[4] a, float[6,4,1,1] t, float[6,1,1] k,
 float[5,6,1,1] v> {{
    c = Conv(x, w, b)  r = Relu(c)
    i = Conv<pads=[1,1,1,1]>(r, u, a)  j = Relu(i)
    o = Conv(j, t)  z = Add(o, r)
    m = {last}  q = Relu(m)
    y = Conv(q, v)
}}"""


def test_a_shortcut_ties_what_it_adds() -> None:
    before = uneven(RESIDUAL.format(last="Add(z, k)"))
    graph = equalized(before)
    old, new = before.constants(), graph.constants()
    scale = ranges(old["w"], 0) / ranges(new["w"], 0)
    np.testing.assert_allclose(ranges(old["k"], 0) / ranges(new["k"], 0), scale, rtol=1e-4)
    assert np.ptp(np.log(scale)) > 1


def test_a_computed_summand_holds_what_it_is_added_to() -> None:
    before = uneven(RESIDUAL.format(last="Add(z, s)"))
    graph = equalized(before)
    constants = graph.constants()
    np.testing.assert_allclose(ranges(constants["u"], 0), ranges(constants["t"], 1), rtol=1e-3)
    np.testing.assert_array_equal(constants["w"], before.constants()["w"])


def test_shared_weights_and_dead_channels_stay() -> None:
    shared = uneven("""shared (float[N,6] x) => (float[N,6] y) <float[6,6] w, float[6] b>
    { c = Gemm(x, w, b)  r = Relu(c)  y = MatMul(r, w) }""")
    assert equalized(shared).fingerprint() == shared.fingerprint()
    dead = uneven(PAIR.format(between="Relu(c)"))
    weight = dead.constants()["w"].copy()
    weight[2] = 0
    dead.set_constant("w", weight)
    constants = equalized(dead).constants()
    np.testing.assert_array_equal(constants["v"][:, 2], dead.constants()["v"][:, 2])


def test_second_run_finds_nothing() -> None:
    graph = equalized(uneven(PAIR.format(between="Relu(c)")))
    before = graph.fingerprint()
    Equalize().run(graph, Context(original=graph.clone()))
    assert graph.fingerprint() == before


def test_references_say_what_tensors_were() -> None:
    before = uneven(RESIDUAL.format(last="Add(z, k)"))
    graph = equalized(equalized(before), Equalize())
    graph = equalized(graph, Equalize(balance="weights", tolerance=1e-6))
    references = noted_references(graph)
    assert {entry.tensor for entry in references.values()} == {"c", "i", "o", "z", "m"}
    feeds = {
        "x": np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32),
        "s": np.zeros((6, 1, 1), np.float32),
    }
    (name,) = (name for name, entry in references.items() if entry.tensor == "m")
    (old,) = run_model(before.with_outputs(["m"]), feeds)
    (new,) = run_model(graph.with_outputs([name]), feeds)
    wanted = references[name].of(old)
    np.testing.assert_allclose(new, wanted, rtol=1e-4, atol=1e-5)


NORM = """norm (float[N,4,6] x) => (float[N,4,5] y)
<float[6] w, float[6] b, float[6,5] v> {
    n = LayerNormalization<axis=-1>(x, w, b)
    y = MatMul(n, v)
}"""


def test_activations_meet_what_reads_them() -> None:
    before = uneven(NORM)
    x = np.random.default_rng(0).standard_normal((64, 4, 6)).astype(np.float32)
    data = Dataset.from_arrays({"x": x})
    graph = before.clone()
    Equalize(balance="activations").run(graph, Context(original=before, calibration=data))
    assert_same_outputs(before.to_model(), graph, feeds={"x": x})
    (name,) = norms_of(graph)
    (n,) = run_model(graph.with_outputs([name]), {"x": x})
    ratio = ranges(n, 2) / ranges(graph.constants()["v"], 0)
    np.testing.assert_allclose(ratio / np.median(ratio), 1.0, rtol=1e-3)


def norms_of(graph: Graph) -> list[str]:
    return [node.outputs[0].name for node in graph.nodes if node.op == "LayerNormalization"]


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="sweeps must be at least 1"):
        Equalize(sweeps=0)
    with pytest.raises(RecipeError, match="tolerance must be above 0"):
        Equalize(tolerance=0)
    with pytest.raises(RecipeError, match="needs inputs"):
        apply_pass(parse(NORM), Equalize(balance="activations"))
