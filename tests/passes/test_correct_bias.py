"""correct-bias: mean errors of layers go, what cannot be compared is named."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.quantize.expecting import clamped
from passes.correct_bias import CorrectBias
from passes.equalize import Equalize
from passes.fold_batch_norm import FoldBatchNorm
from passes.quantize_static import QuantizeStatic
from passes.quantize_weights import QuantizeWeights
from tests.asserting import assert_valid, parse, run_model

NETWORK = """net (float[N,8,8,8] x) => (float[N,10] y)
<float[24,8,3,3] w, float[24] b, float[24,24,3,3] v, float[24] c, float[24,10] g, float[10] d> {
    p = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    q = Relu(p)
    r = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(q, v, c)
    s = Add(r, q)
    t = Relu(s)
    a = GlobalAveragePool(t)
    f = Flatten(a)
    y = Gemm(f, g, d)
}"""


def network() -> Graph:
    graph = Graph.load(parse(NETWORK))
    for name in ("v", "g"):
        graph.set_constant(name, graph.constants()[name].astype(np.float32) * np.float32(0.1))
    return graph


def data(count: int = 64) -> Dataset:
    x = np.random.default_rng(3).random((count, 8, 8, 8)).astype(np.float32)
    return Dataset.from_arrays({"x": x})


def mean_errors(graph: Graph, original: Graph, names: dict[str, str]) -> list[float]:
    """The largest mean error of a channel, for each tensor, in units of the original's spread."""
    feeds = next(data().batches(64))
    errors = []
    for ours, theirs in names.items():
        (found,) = run_model(graph.with_outputs([ours]), feeds)
        (wanted,) = run_model(original.with_outputs([theirs]), feeds)
        axes = tuple(axis for axis in range(wanted.ndim) if axis != 1)
        errors.append(float(np.abs((found - wanted).mean(axes)).max() / wanted.std()))
    return errors


@pytest.mark.parametrize("static", [True, False])
def test_means_are_those_of_the_original(static: bool) -> None:
    original, data_set = network(), data()
    graph = original.clone()
    context = Context(original=original, calibration=data_set)
    if static:
        QuantizeStatic(pays=False, least_db=None).run(graph, context)
    else:
        QuantizeWeights(bits=4, block=0).run(graph, context)
    layers = {"q_f" if static else "p": "p", "t_f" if static else "s": "s"}
    before = mean_errors(graph, original, layers)
    CorrectBias().run(graph, context)
    assert_valid(graph)
    after = mean_errors(graph, original, layers)
    assert all(a < 0.1 * b for a, b in zip(after, before, strict=True))
    assert max(after) < 1e-3
    assert context.notes["left_alone"] == {}


def test_rescaled_layers_are_compared_with_what_they_were() -> None:
    original, graph = network(), network()
    context = Context(original=original, calibration=data())
    Equalize().run(graph, context)
    QuantizeWeights(bits=4, block=0).run(graph, context)
    CorrectBias().run(graph, context)
    shifts = context.notes["shifts"]
    assert isinstance(shifts, dict)
    assert len(shifts) == 3
    assert context.notes["left_alone"] == {}
    feeds = next(data().batches(64))
    (found,), (wanted,) = run_model(graph, feeds), run_model(original, feeds)
    assert np.abs((found - wanted).mean(0)).max() < 1e-3 * np.abs(wanted).max()


def test_an_original_that_is_quantized_itself_stays() -> None:
    """Grids that clamp for an absorbed Relu do not pass for what the layer gave."""
    graph, context = network(), Context(original=network(), calibration=data())
    QuantizeStatic(pays=False, least_db=None).run(graph, context)
    again = graph.clone()
    CorrectBias().run(again, Context(original=graph, calibration=data()))
    for name, array in graph.constants().items():
        np.testing.assert_array_equal(again.constants()[name], array)


def test_what_has_no_bias_or_no_original_is_left_alone() -> None:
    text = """two (float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64,64] v> {
        h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"""
    original = Graph.load(parse(text))
    graph = original.clone()
    QuantizeWeights().run(graph, Context(original=original))
    graph.rename("h", "renamed")
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    context = Context(original=original, calibration=Dataset.from_arrays({"x": x}))
    before = graph.fingerprint()
    CorrectBias().run(graph, context)
    assert graph.fingerprint() == before
    assert context.notes["left_alone"] == {
        "renamed": "the original has no tensor 'renamed'",
        "y": "it has no bias",
    }


NORMALISED = """norm (float[N,8,8,8] x) => (float[N,10] y)
<float[24,8,3,3] w, float[24] g1, float[24] b1, float[24] m1, float[24] var1,
 float[24,1,1,1] e, float[24] g2, float[24] b2, float[24] m2, float[24] var2,
 float[24,24,1,1] v, float[24] g3, float[24] b3, float[24] m3, float[24] var3,
 float[10,24] h, float[10] c, float low = {0.0}, float high = {2.0}> {
    p = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    q = BatchNormalization(p, g1, b1, m1, var1)
    r = Relu(q)
    i = Conv<kernel_shape=[1,1], group=24>(r, e)
    j = BatchNormalization(i, g2, b2, m2, var2)
    k = Clip(j, low, high)
    s = Conv<kernel_shape=[1,1]>(k, v)
    t = BatchNormalization(s, g3, b3, m3, var3)
    z = Add(t, k)
    o = Relu(z)
    a = GlobalAveragePool(o)
    f = Flatten(a)
    y = Gemm<transB=1>(f, h, c)
}"""


def test_batch_norm_stands_in_for_inputs() -> None:
    """With statistics that hold, most of the mean error goes, without any input."""
    original = Graph.load(parse(NORMALISED))
    data_set = Dataset.from_arrays(
        {"x": np.random.default_rng(3).standard_normal((64, 8, 8, 8)).astype(np.float32)}
    )
    feeds = next(data_set.batches(64))
    for number, name in enumerate(("p", "i", "s"), 1):
        (made,) = run_model(original.with_outputs([name]), feeds)
        original.set_constant(f"m{number}", made.mean((0, 2, 3)))
        original.set_constant(f"var{number}", made.var((0, 2, 3)))
    graph = original.clone()
    context = Context(original=original)
    FoldBatchNorm().run(graph, context)
    QuantizeWeights(bits=4, block=0).run(graph, context)
    errors = []
    for _ in range(2):
        (found,), (wanted,) = (run_model(g.with_outputs(["t"]), feeds) for g in (graph, original))
        errors.append(float(np.square((found - wanted).mean((0, 2, 3))).mean()))
        CorrectBias(means="batch-norm").run(graph, context)
    assert errors[1] < 0.1 * errors[0]
    assert context.notes["left_alone"] == {"q": "its input is not known"}


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (-1.0, 0.5), (-np.inf, np.inf)])
def test_moments_of_a_clamped_normal(low: float, high: float) -> None:
    draws = np.random.default_rng(0).standard_normal(400_000)
    mean, variance = np.array([-1.0, 0.0, 2.0]), np.array([0.25, 1.0, 4.0])
    found = clamped(mean, variance, low, high)
    values = np.clip(mean + np.sqrt(variance) * draws[:, np.newaxis], low, high)
    assert found.variance is not None
    np.testing.assert_allclose(found.mean, values.mean(0), atol=0.01)
    np.testing.assert_allclose(found.variance, values.var(0), atol=0.03)


def test_errors_that_cancel_are_left_to_do_so() -> None:
    """Both branches are off by the same, but only one of them has a bias to correct."""
    original = Graph.load(
        parse(
            """twins (float[N,8,8,8] x) => (float[N,24,8,8] y)
            <float[24,8,3,3] w, float[24,8,3,3] v, float[24] b> {
                p = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
                q = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, v)
                y = Sub(p, q)
            }"""
        )
    )
    original.set_constant("v", original.constants()["w"])
    graph, context = original.clone(), Context(original=original, calibration=data())
    QuantizeWeights(bits=4, block=0).run(graph, context)
    before = graph.content_hash()
    CorrectBias().run(graph, context)
    assert graph.content_hash() == before
    assert "biases stay" in str(context.notes["remark"])
    assert not context.notes["shifts"]


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="samples must be at least 1"):
        CorrectBias(samples=0)
    with pytest.raises(RecipeError, match="needs inputs to calibrate"):
        CorrectBias().run(network(), Context(original=network()))
