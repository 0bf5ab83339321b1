"""adaround: layers give what they gave, with fewer bits, and nearly as exactly as codes allow."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.train import Descent, RoundingTask, learn_rounding
from passes.adaround import AdaRound
from passes.equalize import Equalize
from passes.quantize_static import QuantizeStatic
from passes.quantize_weights import QuantizeWeights
from tests.asserting import assert_valid, parse, run_model
from tests.quantize.executing import executed, run_optimized

NETWORK = """net (float[N,8,8,8] x) => (float[N,10] y)
<float[24,8,3,3] w, float[24] b, float[24,1,3,3] e, float[24] h, float[24,24,1,1] v, float[24] c,
 float[10,24] g, float[10] d> {
    p = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    q = Relu(p)
    u = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=24>(q, e, h)
    r = Conv<kernel_shape=[1,1]>(u, v, c)
    s = Add(r, q)
    t = Relu(s)
    a = GlobalAveragePool(t)
    f = Flatten(a)
    y = Gemm<transB=1>(f, g, d)
}"""


def network() -> Graph:
    graph = Graph.load(parse(NETWORK))
    for name in ("w", "e", "v", "g"):
        graph.set_constant(name, graph.constants()[name].astype(np.float32) * np.float32(0.2))
    return graph


def data(count: int = 48, *, seed: int = 3) -> Dataset:
    rng = np.random.default_rng(seed)
    mixed = rng.random((8, 8)) / 4
    x = np.einsum("nchw,cd->ndhw", rng.random((count, 8, 8, 8)), mixed).astype(np.float32)
    return Dataset.from_arrays({"x": x})


def error(graph: Graph, original: Graph, names: tuple[str, str] = ("t", "t")) -> float:
    feeds = next(data(64, seed=3).batches(64))
    (found,) = run_model(graph.with_outputs([names[0]]), feeds)
    (wanted,) = run_model(original.with_outputs([names[1]]), feeds)
    return float(np.square(found - wanted).mean() / np.square(wanted).mean())


def static(original: Graph) -> Graph:
    graph = original.clone()
    context = Context(original=original, calibration=data())
    QuantizeStatic(pays=False, least_db=None).run(graph, context)
    return graph


@pytest.mark.parametrize("steps", [0, 60])
def test_four_bits_lose_less_than_rounding_to_the_nearest(steps: int) -> None:
    original = network()
    nearest = original.clone()
    QuantizeWeights(bits=4, block=0).run(nearest, Context(original=original))
    graph = static(original)
    context = Context(original=original, calibration=data())
    AdaRound(steps=steps, batch=128).run(graph, context)
    assert_valid(graph)
    codes = [a.dtype.name for n, a in graph.constants().items() if n in ("w_q", "e_q", "v_q")]
    assert codes == ["int4"] * 3
    assert error(graph, original) < 0.3 * error(nearest, original)
    errors = context.notes["errors"]
    assert isinstance(errors, dict)
    assert len(errors) == 4
    for entry in errors.values():
        assert isinstance(entry, dict)
        before, after = entry["nearest"], entry["now"]
        assert isinstance(before, float)
        assert isinstance(after, float)
        assert after < before


@pytest.mark.parametrize("bits", [8, 6, 3])
def test_other_widths_take_a_byte(bits: int) -> None:
    original = network()
    graph = static(original)
    AdaRound(bits=bits, steps=0).run(graph, Context(original=original, calibration=data()))
    assert_valid(graph)
    codes = graph.constants()["w_q"]
    assert codes.dtype == np.int8
    limit = 2 ** (bits - 1)
    assert limit // 2 < np.abs(codes.astype(int)).max() <= limit


def test_packed_or_not_is_the_same_network() -> None:
    original = network()
    results = []
    for packed in (True, False):
        graph = static(original)
        context = Context(original=original, calibration=data())
        AdaRound(packed=packed, steps=0).run(graph, context)
        results.append(run_model(graph, next(data(4).batches(4)))[0])
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_unpacked_layers_run_on_integers(bits: int, tmp_path: Path) -> None:
    graph = static(network())
    before = executed(graph, tmp_path)
    context = Context(original=network(), calibration=data())
    AdaRound(bits=bits, packed=False, steps=0).run(graph, context)
    assert executed(graph, tmp_path) == before
    assert before["QLinearConv"] == 3
    feeds = next(data(16).batches(16))
    plain, fast = run_model(graph, feeds)[0], run_optimized(graph, feeds)[0]
    assert np.abs(plain - fast).max() < 0.01 * np.abs(plain).max()


def test_a_block_never_gets_worse() -> None:
    original = network()
    graph, alone = static(original), static(original)
    AdaRound(bits=2, steps=0).run(alone, Context(original=original, calibration=data()))
    context = Context(original=original, calibration=data())
    AdaRound(bits=2, steps=0, block_steps=150, batch=512, rate=0.03).run(graph, context)
    assert_valid(graph)
    blocks = context.notes["blocks"]
    assert isinstance(blocks, dict)
    assert list(blocks) == ["t"], "the Gemm behind the sum is alone"
    for entry in blocks.values():
        assert isinstance(entry, dict)
        before, after = entry["layers"], entry["now"]
        assert isinstance(before, float)
        assert isinstance(after, float)
        assert 0 < after <= before
        assert before == pytest.approx(error_of_calibration(alone, original), rel=0.01)
        assert after == pytest.approx(error_of_calibration(graph, original), rel=0.01)


def error_of_calibration(graph: Graph, original: Graph) -> float:
    feeds = next(data().batches(48))
    (found,), (wanted,) = (run_model(g.with_outputs(["t"]), feeds) for g in (graph, original))
    return float(np.square(found - wanted).mean() / np.square(wanted).mean())


def test_rescaled_layers_are_compared_with_what_they_were() -> None:
    original, graph = network(), network()
    context = Context(original=original, calibration=data())
    Equalize().run(graph, context)
    QuantizeWeights(bits=4, block=0).run(graph, context)
    before = error(graph, original, ("y", "y"))
    AdaRound(steps=0).run(graph, context)
    assert context.notes["left_alone"] == {}
    assert error(graph, original, ("y", "y")) < 0.3 * before


def test_what_is_not_in_the_original_is_left_alone() -> None:
    original = network()
    graph = original.clone()
    QuantizeWeights(bits=4, block=0).run(graph, Context(original=original))
    graph.rename("r", "renamed")
    context = Context(original=original, calibration=data())
    AdaRound(steps=0).run(graph, context)
    assert context.notes["left_alone"] == {"renamed": "the original has no tensor 'renamed'"}


def test_learned_directions_are_the_best_of_all() -> None:
    """Six weights in one row: gradients find what trying all 64 directions finds."""
    rng = np.random.default_rng(1)
    inputs = (rng.standard_normal((1, 512, 6)) + 1.0).astype(np.float32)
    codes = rng.uniform(-3, 3, (1, 1, 6)).astype(np.float32)
    targets = np.einsum("gri,goi->gro", inputs, codes)
    ones = np.ones_like(codes)
    task = RoundingTask(
        codes, ones, 0 * ones, (-7, 7), inputs, targets, np.zeros((1, 1), np.float32), (0.0, np.inf)
    )
    found = learn_rounding(task, Descent(600, 256, 0.02, 0.1, 0, "cpu"))

    def loss(code: np.ndarray) -> float:
        made = np.maximum(np.einsum("gri,goi->gro", inputs, code), 0)
        return float(np.square(made - np.maximum(targets, 0)).mean())

    tried = [np.floor(codes) + np.array(up).reshape(1, 1, 6)
             for up in itertools.product((0, 1), repeat=6)]  # fmt: skip
    losses = sorted(loss(code) for code in tried)
    assert loss(found) <= 1.5 * losses[0]
    assert loss(found) < 0.5 * loss(np.rint(codes))


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="bits must be from 2 to 8, got 9"):
        AdaRound(bits=9)
    with pytest.raises(RecipeError, match="steps must not be negative"):
        AdaRound(steps=-1)
    with pytest.raises(RecipeError, match="needs inputs to calibrate"):
        AdaRound().run(network(), Context(original=network()))
