"""quantize-weights: codes say what was rounded, tied weights once, GPTQ loses less."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from graphopt.data import Dataset
from graphopt.errors import ModelError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.quantize import rounding
from graphopt.quantize.gptq import sweep
from graphopt.quantize.grid import INT4, UINT4, Grid
from graphopt.quantize.scales import fit_grid
from graphopt.quantize.stored_layers import unfit_layers
from passes.quantize_dynamic import QuantizeDynamic
from passes.quantize_weights import QuantizeWeights
from tests.asserting import assert_same_outputs, parse, random_inputs, run_model

NETWORK = """net (float[N,16,8,8] x) => (float[N,40] y)
<float[32,16,3,3] w, float[32] b, float[32,1,3,3] d, float[32,64,2,2] u, float[64,64] m,
 float[40,64] g, float[40] c> {
    p = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    q = Relu(p)
    r = Conv<kernel_shape=[3,3], group=32>(q, d)
    s = ConvTranspose<strides=[2,2]>(r, u)
    a = GlobalAveragePool(s)
    f = Flatten(a)
    h = MatMul(f, m)
    i = Sigmoid(h)
    y = Gemm<transB=1>(i, g, c)
}"""


def stored(graph: Graph, step: QuantizeWeights, data: Dataset | None = None) -> Graph:
    result = graph.clone()
    step.run(result, Context(original=graph, calibration=data))
    result.verify()
    onnx.checker.check_model(result.to_model(), full_check=True)
    return result


def images(count: int = 64, *, channels: int = 16) -> Dataset:
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((channels, channels)) / 4
    x = np.einsum("nchw,cd->ndhw", rng.standard_normal((count, channels, 8, 8)), mixed)
    return Dataset.from_arrays({"x": x.astype(np.float32)})


def read_back(graph: Graph, weight: str) -> npt.NDArray[np.float32]:
    """What a stored weight is when it is read."""
    shown = graph.with_outputs([weight])
    (found,) = run_model(shown, random_inputs(shown.to_model()))
    return np.asarray(found, np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_are_near_and_outputs_are_those_of_the_rounded_weights(
    bits: int, symmetric: bool
) -> None:
    before = Graph.load(parse(NETWORK))
    after = stored(before, QuantizeWeights(bits=4 if bits == 4 else 8, symmetric=symmetric))
    rounded = before.clone()
    for name in ("w", "u", "m", "g", *(["d"] if bits == 4 else [])):
        array = before.constants()[name].astype(np.float32)
        found = read_back(after, name)
        found = found.T if name == "g" else found
        error = np.linalg.norm(found - array) / np.linalg.norm(array)
        assert 0 < error < {8: 0.012, 4: 0.13}[bits], (name, error)
        rounded.set_constant(name, np.ascontiguousarray(found))
    assert_same_outputs(rounded.to_model(), after)
    assert after.size_bytes() < 0.5 * before.size_bytes()
    codes = after.constants()["w_codes"].dtype
    assert str(codes) == {(8, True): "int8", (8, False): "uint8", (4, True): "int4",
                          (4, False): "uint4"}[bits, symmetric]  # fmt: skip


def test_weights_on_the_grid_stay_as_they_are() -> None:
    before = Graph.load(parse(NETWORK))
    for name in ("w", "u", "m", "g"):
        shape = before.constants()[name].shape
        steps = np.random.default_rng(3).integers(-127, 128, shape)
        axis = {"w": 0, "g": 0}.get(name, 1)
        steps[tuple(0 if a != axis else slice(None) for a in range(len(shape)))] = 127
        before.set_constant(name, (steps / 128).astype(np.float32))
    after = stored(before, QuantizeWeights())
    assert_same_outputs(before.to_model(), after, tolerance=1e-6)


def test_a_depthwise_layer_and_small_weights_stay_float() -> None:
    before = Graph.load(parse(NETWORK))
    context = Context(original=before)
    QuantizeWeights().run(before, context)
    left = context.notes["left_alone"]
    assert isinstance(left, dict)
    assert left == {"d": "it would hardly get smaller"}
    assert before.constant("d") is not None


def test_matrices_become_what_onnx_runtime_computes_on_integers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Transposed weights too: ONNX Runtime only knows them the other way round."""
    path = tmp_path_factory.mktemp("fused") / "fused.onnx"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    after = stored(Graph.load(parse(NETWORK)), QuantizeWeights(bits=4))
    ort.InferenceSession(after.to_bytes(), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops.count("MatMulNBits") == 2
    assert "Gemm" not in ops


TIED = """tied (int64[N,5] ids, float[N,3,32] z)
=> (float[N,5,32] e, float[N,3,96] a, float[N,96] b)
<float[96,32] table, float[32,96] v> {
    e = Gather(table, ids)
    s = ReduceMean<axes=[1], keepdims=0>(z)
    a = MatMul(z, v)
    q = MatMul(s, v)
    t = Gemm<transB=1>(s, table)
    b = Add(q, t)
}"""


def test_tied_weights_are_stored_once() -> None:
    before = Graph.load(parse(TIED))
    after = stored(before, QuantizeWeights(bits=4))
    codes = {n: a for n, a in after.constants().items() if "int" in str(a.dtype) and a.ndim == 2}
    assert {name: str(array.dtype) for name, array in codes.items()} == {
        "table_codes": "int8",
        "v_codes": "int4",
    }
    rounded = before.clone()
    for name in ("table", "v"):
        rounded.set_constant(name, read_back(after, name))
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 3, 32)).astype(np.float32)
    feeds: dict[str, np.ndarray] = {"ids": rng.integers(0, 96, (2, 5)), "z": z}
    assert_same_outputs(rounded.to_model(), after, feeds=feeds)


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_loses_less_than_nearest(block: int, symmetric: bool) -> None:
    before, data = Graph.load(parse(NETWORK)), images()
    feeds = next(images(128).batches(128))
    (wanted,) = run_model(before.with_outputs(["q"]), feeds)
    losses = {}
    for method in ("nearest", "gptq"):
        step = QuantizeWeights(
            bits=4,
            block=block,
            symmetric=symmetric,
            method="gptq" if method == "gptq" else "nearest",
        )
        (found,) = run_model(stored(before, step, data).with_outputs(["q"]), feeds)
        losses[method] = float(np.square(found - wanted).mean())
    assert losses["gptq"] < 0.8 * losses["nearest"]


def test_gptq_without_correlations_is_rounding_to_the_nearest() -> None:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((5, 300))
    scale, zero = np.full(matrix.shape, 0.21), np.zeros(matrix.shape)
    codes = sweep(matrix, np.diag(rng.random(300) + 0.1), scale, zero, (-7, 7), 0.01)
    np.testing.assert_array_equal(codes, np.clip(np.rint(matrix / 0.21), -7, 7))


def test_gptq_of_two_columns_is_the_best_there_is() -> None:
    """After the first column is rounded, the second takes what the moments say it should."""
    moments = np.array([[2.0, 1.0], [1.0, 1.0]])
    matrix = np.array([[0.4, 0.3]])
    ones = np.ones((1, 2))
    codes = sweep(matrix, moments, ones, 0 * ones, (-7, 7), 1e-9)
    candidates = [(a, b) for a in (0.0,) for b in (-1.0, 0.0, 1.0)]

    def loss(code: tuple[float, float]) -> float:
        wrong = matrix[0] - np.array(code)
        return float(wrong @ moments @ wrong)

    assert tuple(codes[0]) == min(candidates, key=loss)


@pytest.mark.parametrize("centred", [True, False])
def test_fitted_grids_lose_no_more_than_those_of_the_whole_range(centred: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_t(2, (6, 64)).astype(np.float32)
    form = INT4 if centred else UINT4
    grid = fit_grid(weight, form, 1, 16, centred=centred)
    assert grid.scale.shape == grid.zero.shape == (6, 4)
    low, high = weight.reshape(6, 4, 16).min(2), weight.reshape(6, 4, 16).max(2)
    if centred:
        scale = np.maximum(-low, high) / 7
        zero = np.zeros_like(scale)
    else:
        scale = (np.maximum(high, 0) - np.minimum(low, 0)) / 15
        zero = np.clip(np.rint(-np.minimum(low, 0) / scale), 0, 15)
    plain = Grid(scale.astype(np.float32), zero.astype(form.dtype), form, 1, 16)
    errors = [np.square(weight - g.round(weight)).reshape(6, 4, 16).sum(2) for g in (grid, plain)]
    assert np.all(errors[0] <= errors[1] * (1 + 1e-5))
    assert errors[0].sum() < 0.98 * errors[1].sum()


def test_patterns_choose() -> None:
    before = Graph.load(parse(NETWORK))
    after = stored(before, QuantizeWeights(weights=("?", "!w", "!u")))
    assert [n for n in ("w", "u", "m", "g") if after.constant(n) is not None] == ["w", "u"]
    with pytest.raises(RecipeError, match=r"no weight is called '!head\.\*'; there are w, "):
        stored(before, QuantizeWeights(weights=("!head.*",)))


@pytest.mark.parametrize(("bits", "opset"), [(8, 13), (4, 21)])
def test_older_operator_sets_are_converted(bits: int, opset: int) -> None:
    before = Graph.load(parse(NETWORK, opset=11))
    after = stored(before, QuantizeWeights(bits=4 if bits == 4 else 8))
    assert after.opset == opset


def test_what_cannot_be_converted_says_which_operator_set_is_needed() -> None:
    text = """old (float[2,64] x) => (float[2,64] y) <float[64,64] w> {
        h = MatMul(x, w)
        y = Scan<body = step (float[64] a) => (float[64] b) { b = Relu(a) }, num_scan_inputs=1>(h)
    }"""
    with pytest.raises(ModelError, match="needs operator set 21, the model has 8"):
        stored(Graph.load(parse(text, opset=8)), QuantizeWeights(bits=4))


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="block must be 0 or a power of two from 16 on, got 24"):
        QuantizeWeights(block=24)
    with pytest.raises(RecipeError, match="bits is 4 or 8, got 3"):
        QuantizeWeights(bits=3)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="block is for bits=4, got 64 with bits=8"):
        QuantizeWeights(block=64)
    with pytest.raises(RecipeError, match="samples is for method=gptq, got 16 with method=nearest"):
        QuantizeWeights(samples=16)
    with pytest.raises(RecipeError, match=r"damping is for method=gptq, got 0\.1 with"):
        QuantizeWeights(damping=0.1)
    with pytest.raises(RecipeError, match="method=gptq needs inputs"):
        stored(Graph.load(parse(NETWORK)), QuantizeWeights(method="gptq"))


@pytest.mark.parametrize(("inputs", "outputs", "solved"), [(24, 96, True), (96, 24, False)])
@pytest.mark.parametrize("turned", [True, False])
def test_how_wide_a_layer_is_does_not_depend_on_how_it_is_stored(
    inputs: int, outputs: int, solved: bool, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "WIDEST", 50)
    shape = f"{outputs},{inputs}" if turned else f"{inputs},{outputs}"
    text = f"""net (float[N,{inputs}] x) => (float[N,{outputs}] y) <float[{shape}] w> {{
        y = Gemm<transB={int(turned)}>(x, w) }}"""
    before = Graph.load(parse(text))
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((inputs, inputs)) / np.sqrt(inputs)
    x = (rng.standard_normal((256, inputs)) @ mixed).astype(np.float32)
    data = Dataset.from_arrays({"x": x})
    nearest, own = (
        read_back(stored(before, step, data), "w")
        for step in (
            QuantizeWeights(bits=4, block=0),
            QuantizeWeights(bits=4, block=0, method="gptq"),
        )
    )
    assert np.array_equal(nearest, own) is not solved


@pytest.mark.parametrize(("place", "size"), [("", ()), ("[1]", (1,)), ("[2,2]", (2, 2))])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_a_table_by_any_number_of_indices(
    place: str, size: tuple[int, ...], symmetric: bool
) -> None:
    sizes = ",".join(str(axis) for axis in (*size, 40))
    text = f"net (int64{place} i) => (float[{sizes}] y) <float[100,40] w> {{ y = Gather(w, i) }}"
    before = Graph.load(parse(text))
    after = stored(before, QuantizeWeights(symmetric=symmetric))
    assert str(after.constants()["w_codes"].dtype) == ("int8" if symmetric else "uint8")
    feeds = {"i": np.full(size, 7)}
    assert_same_outputs(before.to_model(), after, feeds=feeds, tolerance=0.02)


@pytest.mark.parametrize("inputs", ["x, w, w", "w, w, x"])
@pytest.mark.parametrize("step", [QuantizeWeights(), QuantizeDynamic()])
def test_a_weight_that_one_layer_reads_twice_stays(
    inputs: str, step: QuantizeWeights | QuantizeDynamic
) -> None:
    text = f"""net (float[64,64] x) => (float[64,64] y) <float[64,64] w> {{
        y = Gemm<transB=1>({inputs})
    }}"""
    before = Graph.load(parse(text))
    after, context = before.clone(), Context(original=before)
    step.run(after, context)
    assert context.notes["left_alone"] == {"w": "Gemm 'y' reads it twice"}
    feeds = {"x": np.ones((64, 64), np.float32)}
    assert_same_outputs(before.to_model(), after, feeds=feeds, tolerance=0.0)


@pytest.mark.parametrize("step", [QuantizeWeights(bits=4), QuantizeDynamic()])
def test_a_weight_without_values_stays(step: QuantizeWeights | QuantizeDynamic) -> None:
    text = "net (float[N,0] x) => (float[N,64] y) <float[0,64] w> { y = MatMul(x, w) }"
    before = Graph.load(parse(text))
    after = before.clone()
    step.run(after, Context(original=before))
    feeds = {"x": np.ones((2, 0), np.float32)}
    assert_same_outputs(before.to_model(), after, feeds=feeds, tolerance=0.0)


def test_without_weights_the_operator_set_stays() -> None:
    before = Graph.load(parse("net (float[N,8] x) => (float[N,8] y) { y = Relu(x) }"))
    assert stored(before, QuantizeWeights(bits=4)).opset == before.opset == 17


def test_what_gptq_cannot_do_is_named() -> None:
    text = """net (float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64,64] v> {
        a = MatMul(x, w)
        b = MatMul(a, w)
        y = MatMul(b, v)
    }"""
    before = Graph.load(parse(text))
    x = np.random.default_rng(0).standard_normal((80, 64)).astype(np.float32)
    context = Context(original=before, calibration=Dataset.from_arrays({"x": x}))
    QuantizeWeights(bits=4, method="gptq").run(before.clone(), context)
    assert context.notes["nearest"] == ["w"]


@pytest.mark.parametrize("step", [QuantizeWeights(), QuantizeDynamic()])
def test_where_nothing_is_stored_it_says_why(step: QuantizeWeights | QuantizeDynamic) -> None:
    text = """net (float[64,64] x) => (float[64,64] y, float[64,64] w) <float[64,64] w> {
        y = MatMul(x, w)
    }"""
    before = Graph.load(parse(text))
    context = Context(original=before)
    step.run(before.clone(), context)
    assert context.notes["remark"] == "'w' is left as it was, it is an output"


HALVES = """net (float16[N,64] x, int64[N] i) => (float16[N,48] y)
<float16[96,64] table, float16[64,64] w, float16[48,64] g, float16[48] c> {
    e = Gather(table, i)
    a = Add(x, e)
    h = MatMul(a, w)
    r = Relu(h)
    y = Gemm<transB=1>(r, g, c)
}"""


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("method", ["nearest", "gptq"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_in_halves_stay_halves(
    bits: Literal[4, 8], method: Literal["nearest", "gptq"], symmetric: bool
) -> None:
    before = Graph.load(parse(HALVES))
    weight = before.constants()["w"].astype(np.float16).copy()
    weight[:, 5] = 0
    weight[:, 6] *= np.float16(1e-5)  # steps that halves cannot hold
    before.set_constant("w", weight)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((96, 64)).astype(np.float16)
    feeds: dict[str, np.ndarray] = {"x": x, "i": rng.integers(0, 96, 96)}
    step = QuantizeWeights(bits=bits, method=method, symmetric=symmetric)
    after = stored(before, step, Dataset.from_arrays(feeds))
    halves = {n for n, a in after.constants().items() if a.dtype == np.float16 and a.ndim > 1}
    assert halves == {"table_scale_column", *(("w_scale", "g_scale") if bits == 4 else ())}
    (wanted,), (found,) = run_model(before, feeds), run_model(after, feeds)
    assert found.dtype == np.float16
    wrong = np.square(found.astype(np.float64) - wanted).sum()
    assert wrong < (2e-4 if bits == 8 else 0.02) * np.square(wanted.astype(np.float64)).sum()


def test_eight_bits_of_halves_need_a_newer_operator_set() -> None:
    text = "net (float16[N,64] x) => (float16[N,64] y) <float16[64,64] w> { y = MatMul(x, w) }"
    before = Graph.load(parse(text, opset=13))
    assert stored(before, QuantizeWeights()).opset == 19


def test_layers_in_halves_are_not_solved_anew() -> None:
    original = Graph.load(parse(HALVES))
    graph = stored(original, QuantizeWeights())
    assert unfit_layers(graph) == {
        "h": "'w_codes' is read as float16", "y": "'g_codes' is read as float16"
    }  # fmt: skip
