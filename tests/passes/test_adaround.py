"""adaround: layers give what they gave, with fewer bits, and nearly as exactly as codes allow."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from onnx.helper import make_opsetid

from graphopt.data import Dataset, input_specs
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.quantize import adaround, layer_rounding
from graphopt.quantize.grid import BIAS, Grid, symmetric
from graphopt.quantize.layer_rounding import Manner, Rows, round_layer
from graphopt.quantize.portability import saturating
from graphopt.quantize.stored_layers import StoredLayer, find_stored_layers, step_of
from graphopt.train import Descent, RoundingTask, learn_rounding
from passes.adaround import AdaRound
from passes.equalize import Equalize
from passes.quantize_static import QuantizeStatic
from passes.quantize_weights import QuantizeWeights
from tests.asserting import assert_valid, parse, run_model
from tests.quantize.executing import executed, run_optimized
from tests.quantize.sequences import sequences

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


def test_one_scale_for_a_whole_weight_becomes_one_for_each_output(tmp_path: Path) -> None:
    """As ONNX Runtime's own quantizer makes them: the bias too has a single step."""
    original = network()
    graph = static(original)
    for layer in find_stored_layers(graph)[:3]:
        step = step_of(graph, layer.layer.data)
        assert step is not None
        assert layer.bias is not None
        values, bias = layer.weight.values(graph), layer.bias.values(graph)
        whole = symmetric(np.abs(values).max())
        product = Grid(whole.scale.reshape(1) * np.float32(step), np.zeros(1, np.int32), BIAS, 0)
        for stored, grid, array in ((layer.weight, whole, values), (layer.bias, product, bias)):
            graph.set_constant(stored.codes, grid.quantize(array))
            graph.set_constant(str(stored.reader.inputs[1].name), grid.scale)
            if len(stored.reader.inputs) > 2:
                graph.set_constant(str(stored.reader.inputs[2].name), grid.zero)
    context = Context(original=original, calibration=data())
    AdaRound(packed=False, steps=0).run(graph, context)
    assert_valid(graph)
    assert error(graph, original) < 0.01
    assert executed(graph, tmp_path)["QLinearConv"] == 3
    feeds = next(data(16).batches(16))
    plain, fast = run_model(graph, feeds)[0], run_optimized(graph, feeds)[0]
    assert np.abs(plain - fast).max() < 0.01 * np.abs(plain).max()


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_the_factor_of_a_gemm_takes_no_codes_away(factor: float) -> None:
    found = []
    for alpha in (1.0, factor):
        original = network()
        graph = static(original)
        for net in (graph, original):
            gemm = next(node for node in net.nodes if node.op == "Gemm")
            net.set_attribute(gemm, "alpha", alpha)
        context = Context(original=original, calibration=data())
        AdaRound(bits=3, steps=0).run(graph, context)
        codes = graph.constants()["g_q"].astype(int)
        found.append((np.abs(codes).max(), np.abs(codes).mean()))
    assert found[1] == pytest.approx(found[0], rel=0.1)


PRODUCTS = """net (float[N,6,64] x) => (float[M,32] y)
<float[64,64] w, float[64,64] v, float[64,32] u, int64[2] s = {-1, 64}> {
    a = MatMul(x, w)
    b = Relu(a)
    c = Reshape(b, s)
    d = MatMul(c, v)
    e = Relu(d)
    y = MatMul(e, u)
}"""


def test_blocks_that_mix_rows_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    original = Graph.load(parse(PRODUCTS))
    dataset = Dataset.from_arrays({"x": rng.standard_normal((40, 6, 64)).astype(np.float32)})
    graph = original.clone()
    context = Context(original=original, calibration=dataset)
    QuantizeWeights(bits=8, block=0).run(graph, context)
    AdaRound(steps=0, block_steps=5).run(graph, context)
    left, errors = context.notes["left_alone"], context.notes["errors"]
    assert isinstance(left, dict)
    assert isinstance(errors, dict)
    assert list(left) == ["y"]
    assert list(errors) == ["a", "d", "y"]
    assert context.notes["blocks"] == {}


def test_blocks_of_rows_that_differ_in_shape_are_left_alone() -> None:
    original, dataset = sequences()
    graph = original.clone()
    context = Context(original=original, calibration=dataset)
    QuantizeStatic(pays=False, least_db=None).run(graph, context)
    AdaRound(bits=4, packed=False, steps=0, block_steps=5).run(graph, context)
    left, errors = context.notes["left_alone"], context.notes["errors"]
    assert isinstance(left, dict)
    assert isinstance(errors, dict)
    assert {*left} == {"y"}
    assert "not one row of one shape" in str(left["y"])
    assert len(errors) == 2


CHAIN = """net (float[N,4,6,6] x) => (float[N,24,6,6] y)
<float[24,4,3,3] w, float[24,24,3,3] v> {{
    a = Conv<pads=[1,1,1,1]>(x, w)
    b = {middle}
    c = Conv<pads=[1,1,1,1]>(b, v)
    y = Sigmoid(c)
}}"""


@pytest.mark.parametrize(("middle", "known"), [("Relu(a)", True), ("QuickGelu(a)", False)])
def test_blocks_need_a_trainable_view_and_no_kernel_shapes(*, middle: str, known: bool) -> None:
    rng = np.random.default_rng(0)
    model = parse(CHAIN.format(middle=middle))
    if not known:
        model.graph.node[1].domain = "com.microsoft"
        model.opset_import.append(make_opsetid("com.microsoft", 1))
    original = Graph.load(model)
    dataset = Dataset.from_arrays({"x": rng.standard_normal((40, 4, 6, 6)).astype(np.float32)})
    graph = original.clone()
    context = Context(original=original, calibration=dataset)
    QuantizeWeights(bits=8, block=0).run(graph, context)
    AdaRound(steps=0, block_steps=5).run(graph, context)
    blocks, left = context.notes["blocks"], context.notes["left_alone"]
    assert isinstance(blocks, dict)
    assert isinstance(left, dict)
    assert list(blocks) == (["c"] if known else [])
    assert list(left) == ([] if known else ["c"])
    assert all("QuickGelu" in str(reason) for reason in left.values())


def test_the_device_of_the_command_line_is_understood() -> None:
    original = network()
    graph = static(original)
    context = Context(original=original, calibration=data(), device="auto")
    AdaRound(steps=2, block_steps=2).run(graph, context)
    assert context.notes["blocks"]


@pytest.mark.parametrize("size", [1, 16])
def test_a_fixed_batch_is_kept_in_blocks(size: int) -> None:
    text = CHAIN.format(middle="Reshape(r, s)").replace("[N,", f"[{size},")
    text = text.replace("b =", "r = Relu(a)\n b =").replace(
        "v>", f"v, int64[4] s={{{size},24,6,6}}>"
    )
    original = Graph.load(parse(text))
    arrays = {"x": np.random.default_rng(0).standard_normal((40, 4, 6, 6)).astype(np.float32)}
    dataset = Dataset.from_arrays(arrays).bind(input_specs(original))
    graph = original.clone()
    context = Context(original=original, calibration=dataset)
    QuantizeWeights(bits=8, block=0).run(graph, context)
    AdaRound(steps=0, block_steps=5).run(graph, context)
    blocks = context.notes["blocks"]
    assert isinstance(blocks, dict)
    assert list(blocks) == ["c"]


@pytest.mark.parametrize("count", [40, 400])
def test_rows_are_no_more_than_fit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row holds what a layer reads and gives: 64 and 64 or 32 numbers."""
    monkeypatch.setattr(adaround, "_BYTES", 4 * 128 * 64)
    held = []

    def noted(graph: Graph, layer: StoredLayer, rows: Rows, manner: Manner) -> object:
        held.append(rows.inputs.nbytes + rows.targets.nbytes)
        return round_layer(graph, layer, rows, manner)

    monkeypatch.setattr(adaround, "round_layer", noted)
    rng = np.random.default_rng(0)
    original = Graph.load(parse(PRODUCTS))
    dataset = Dataset.from_arrays({"x": rng.standard_normal((count, 6, 64)).astype(np.float32)})
    graph = original.clone()
    context = Context(original=original, calibration=dataset)
    QuantizeWeights(bits=8, block=0).run(graph, context)
    AdaRound(steps=0).run(graph, context)
    # A batch of 32 inputs is taken whole where it has one place for each of its 192 rows.
    assert max(held) <= 4 * 128 * 192
    assert len(held) == 3


def test_layers_too_wide_to_solve_for_get_the_nearest_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = network()
    narrow, wide = static(original), static(original)
    AdaRound(steps=0).run(narrow, Context(original=original, calibration=data()))
    monkeypatch.setattr(layer_rounding, "WIDEST", 50)
    context = Context(original=original, calibration=data())
    AdaRound(steps=0).run(wide, context)
    errors = context.notes["errors"]
    assert isinstance(errors, dict)
    assert len(errors) == 4, "72 columns are too many, those of the other layers are not"
    assert error(narrow, original) < error(wide, original) < 0.05


def test_a_weight_that_two_layers_read_is_left_alone_and_said_so() -> None:
    text = """net (float[N,64] x) => (float[N,64] y) <float[64,64] w> {
        h = MatMul(x, w)
        y = MatMul(h, w)
    }"""
    original = Graph.load(parse(text))
    graph = original.clone()
    QuantizeWeights(bits=8, block=0).run(graph, Context(original=original))
    inputs = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    context = Context(original=original, calibration=Dataset.from_arrays({"x": inputs}))
    AdaRound(steps=0).run(graph, context)
    left = context.notes["left_alone"]
    assert isinstance(left, dict)
    assert list(left) == ["h", "y"]
    assert all("is read by others too" in str(why) for why in left.values())


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


def test_what_is_portable_stays_so() -> None:
    original = network()
    graph = original.clone()
    context = Context(original=original, calibration=data())
    QuantizeStatic(pays=False, least_db=None, portable=True).run(graph, context)
    AdaRound(bits=8, steps=20).run(graph, context)
    assert context.notes["left_alone"] == {}
    assert_valid(graph)
    for layer in find_stored_layers(graph):
        codes = graph.constants()[layer.weight.codes]
        assert not saturating(codes, layer.weight.grid.axis or 0).any()
        assert np.abs(codes.astype(int)).max() > 40
    assert error(graph, original) < 1e-3


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
