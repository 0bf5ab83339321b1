"""to-float16: what halves hold is stored or computed in them, what they cannot is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.runtime import observing
from graphopt.runtime.observing import observe
from passes import to_float16
from passes.quantize_dynamic import QuantizeDynamic
from passes.quantize_static import QuantizeStatic
from passes.quantize_weights import QuantizeWeights
from passes.to_float16 import ToFloat16
from tests.asserting import assert_same_outputs, assert_valid, operators, parse, run_model

NETWORK = """net (float[N,3,8,8] x) => (float[N,10] y, float[N,16,8,8] r)
<float[16,3,3,3] w, float[16] b, float[10,16] g, float[10] c, float two = {2.0}> {
    p = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    r = Relu(p)
    s = Pow(r, two)
    a = GlobalAveragePool(s)
    f = Flatten(a)
    y = Gemm<transB=1>(f, g, c)
}"""

FEEDS = {"x": np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)}


def converted(before: Graph, step: ToFloat16, data: Dataset | None = None) -> tuple[Graph, Context]:
    graph, context = before.clone(), Context(original=before, calibration=data)
    step.run(graph, context)
    assert_valid(graph)
    return graph, context


@pytest.mark.parametrize(("kind", "digits"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_stored_weights_are_rounded_and_nothing_else(
    kind: Literal["float16", "bfloat16"], digits: float
) -> None:
    before = Graph.load(parse(NETWORK))
    graph, context = converted(before, ToFloat16(type=kind))
    assert context.notes["stored"] == ["w", "g"]
    rounded = before.clone()
    for name in ("w", "g"):
        array = before.constants()[name].astype(np.float32)
        half = graph.constants()[f"{name}_half"]
        assert half.dtype.name == kind
        values = half.astype(np.float32)
        assert np.all(np.abs(values - array) <= digits * np.abs(array))
        rounded.set_constant(name, values)
    assert_same_outputs(rounded.to_model(), graph, feeds=FEEDS, tolerance=1e-6)
    assert graph.size_bytes() < 0.75 * before.size_bytes()


def test_onnx_runtime_casts_stored_weights_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    graph, _ = converted(Graph.load(parse(NETWORK)), ToFloat16())
    path = tmp_path_factory.mktemp("loaded") / "loaded.onnx"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(graph.to_bytes(), options, providers=["CPUExecutionProvider"])
    assert "Cast" not in operators(Graph.load(path))


def test_computed_in_halves_but_for_what_is_not_safe() -> None:
    before = Graph.load(parse(NETWORK))
    graph, context = converted(before, ToFloat16(compute=True))
    assert context.notes["left_alone"] == {"s": "Pow is not safe in float16"}
    assert graph.inputs == before.inputs
    assert [graph.dtype(name) for name in graph.outputs] == [np.float32, np.float32]
    halves = {node.op for node in graph.nodes if graph.dtype(node.outputs[0].name) == np.float16}
    assert halves == {"Cast", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "Relu"}
    for wanted, found in zip(run_model(before, FEEDS), run_model(graph, FEEDS), strict=True):
        assert found.dtype == np.float32
        assert 0 < np.abs(found - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_values_that_do_not_fit_keep_their_nodes_in_single_precision() -> None:
    before = Graph.load(parse(NETWORK))
    before.set_constant("w", before.constants()["w"].astype(np.float32) * np.float32(3e4))
    graph, context = converted(before, ToFloat16(compute=True), Dataset.from_arrays(FEEDS))
    large = context.notes["too_large"]
    assert isinstance(large, dict)
    assert set(large) == {"p", "r", "s", "a", "f", "y"}
    assert context.notes["computed"] == []
    wide = before.clone()
    array = before.constants()["w"].astype(np.float32)
    array[0, 0, 0, 0] = 1e6
    wide.set_constant("w", array)
    graph, context = converted(wide, ToFloat16())
    assert context.notes["kept_single"] == {"w": "1e+06 is larger than float16 can hold"}
    assert graph.constants()["w"].dtype == np.float32


def test_a_shared_weight_is_stored_once_for_all_its_readers() -> None:
    text = """tied (float[N,8] x) => (float[N,8] y) <float[8,8] w> {
        h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, w) }"""
    graph, _ = converted(Graph.load(parse(text)), ToFloat16())
    assert operators(graph).count("Cast") == 1


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="type is float16 or bfloat16, got 'float8'"):
        ToFloat16(type="float8")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="samples must be at least 1"):
        ToFloat16(samples=0)
    with pytest.raises(RecipeError, match="samples is for compute=true, got 8"):
        ToFloat16(samples=8)


MASKED = """net (float[N,8] x) => (float[N,8] y) <float[8,8] w, float zero = {0.0}, float low> {
    g = Greater(x, zero)
    m = Where(g, x, low)
    s = Softmax<axis=-1>(m)
    y = MatMul(s, w)
}"""


def test_infinite_masks_are_halves_too() -> None:
    before = Graph.load(parse(MASKED))
    before.set_constant("low", np.array(-np.inf, np.float32))
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    x[:, 0] = 1.0
    graph, context = converted(before, ToFloat16(compute=True), Dataset.from_arrays({"x": x}))
    assert context.notes["too_large"] == {}
    computed = context.notes["computed"]
    assert isinstance(computed, list)
    assert {"m", "s", "y"} <= {*map(str, computed)}
    (wanted,), (found,) = run_model(before, {"x": x}), run_model(graph, {"x": x})
    assert np.abs(found - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_inputs_that_do_not_fit_are_read_in_single_precision() -> None:
    text = (
        "net (float[N,8] x) => (float[N,8] y) <float c = {0.00001}> { m = Mul(x, c) y = Tanh(m) }"
    )
    before = Graph.load(parse(text))
    x = 1e5 * np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    graph, context = converted(before, ToFloat16(compute=True), Dataset.from_arrays({"x": x}))
    large = context.notes["too_large"]
    assert isinstance(large, dict)
    assert list(large) == ["x"]
    assert context.notes["left_alone"] == {"m": "float16 cannot hold the values of 'x'"}
    (wanted,), (found,) = run_model(before, {"x": x}), run_model(graph, {"x": x})
    assert np.abs(found - wanted).max() < 5e-3


def test_batches_are_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def watched(
        graph: Graph,
        names: Sequence[str],
        dataset: Dataset,
        *,
        batch_size: int,
        threads: int,
        check: bool,
    ) -> Iterator[dict[str, np.ndarray]]:
        sizes.append(batch_size)
        return observe(graph, names, dataset, batch_size=batch_size, threads=threads, check=check)

    monkeypatch.setattr(to_float16, "observe", watched)
    data = Dataset.from_arrays(FEEDS)
    converted(Graph.load(parse(NETWORK)), ToFloat16(compute=True), data)
    monkeypatch.setattr(observing, "_BATCH_BYTES", 1)
    converted(Graph.load(parse(NETWORK)), ToFloat16(compute=True), data)
    assert sizes == [16, 1]


def test_a_weight_that_a_body_reads_too_stays() -> None:
    text = """net (float[N,8] x, bool c) => (float[N,8] y) <float[8,8] w> {
        h = MatMul(x, w)
        y = If(c) <
            then_branch = more () => (float[N,8] a) { a = MatMul(h, w) },
            else_branch = less () => (float[N,8] b) { b = Relu(h) }
        >
    }"""
    before = Graph.load(parse(text))
    graph, context = converted(before, ToFloat16())
    assert context.notes["kept_single"] == {"w": "it is read inside a body and outside"}
    feeds = {"x": np.ones((2, 8), np.float32), "c": np.array(True)}
    assert_same_outputs(before.to_model(), graph, feeds=feeds, tolerance=0.0)


def test_what_keeps_from_dividing_by_nothing_stays() -> None:
    text = """net (float[N,8] x) => (float[N,8] y, float[N,8] z)
    <float[8] g, float eps = {1e-12}, float two = {2.0}> {
        m = ReduceMean<axes=[1]>(x)
        d = Sub(x, m)
        p = Pow(d, two)
        v = ReduceMean<axes=[1]>(p)
        e = Add(v, eps)
        s = Sqrt(e)
        q = Div(d, s)
        y = Mul(q, g)
        n = ReduceL2<axes=[1]>(x)
        k = Max(n, eps)
        z = Div(x, k)
    }"""
    before = Graph.load(parse(text))
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    x[1], x[2] = 0.0, 1.5
    graph, context = converted(before, ToFloat16(compute=True), Dataset.from_arrays({"x": x}))
    assert context.notes["computed"] == ["d", "y"]
    left = context.notes["left_alone"]
    assert isinstance(left, dict)
    assert left["e"] == "float16 cannot hold the values of 'eps'"
    assert left["q"] == "it divides by 's', which float16 may make 0"
    # ONNX Runtime computes some of it in single precision anyway; this does not.
    found = ReferenceEvaluator(graph.to_model()).run(None, {"x": x})
    for want, got in zip(run_model(before, {"x": x}), found, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-3)


@pytest.mark.parametrize("compute", [False, True])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_what_was_quantized_keeps_its_grids(
    compute: bool, kind: Literal["float16", "bfloat16"]
) -> None:
    text = """net (float[N,8,4,4] x) => (float[N,64,4,4] y) <float[64,8,3,3] w, float[64] b> {
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
        y = Relu(c)
    }"""
    original = Graph.load(parse(text))
    for name in "wb":
        # steps of biases are products of two, and soon smaller than halves can tell
        small = original.constants()[name].astype(np.float32) * np.float32(1e-3)
        original.set_constant(name, small)
    x = np.random.default_rng(2).standard_normal((8, 8, 4, 4)).astype(np.float32)
    data = Dataset.from_arrays({"x": x})
    quantized = original.clone()
    QuantizeStatic(pays=False, least_db=None).run(
        quantized, Context(original=original, calibration=data)
    )
    graph, context = converted(quantized, ToFloat16(type=kind, compute=compute), data)
    kept = context.notes["kept_single"]
    assert isinstance(kept, dict)
    assert kept["b_scale"] == "it is the scale of a grid"
    assert operators(graph) == operators(quantized)
    assert_same_outputs(quantized.to_model(), graph, feeds={"x": x}, tolerance=0.0)


def test_scales_of_blocks_are_stored_in_halves() -> None:
    before = Graph.load(parse("net (float[N,64] x) => (float[N,64] y) <float[64,64] w> {"
                              " y = MatMul(x, w) }"))  # fmt: skip
    QuantizeWeights(bits=4).run(before, Context(original=before.clone()))
    graph, context = converted(before, ToFloat16())
    assert context.notes["stored"] == ["w_scale"]
    feeds = {"x": np.eye(4, 64, dtype=np.float32)}
    assert_same_outputs(before.to_model(), graph, feeds=feeds, tolerance=1e-3)


def test_sums_of_integers_are_more_than_halves_hold() -> None:
    text = "net (float[N,256] x) => (float[N,64] y) <float[256,64] w> { y = MatMul(x, w) }"
    before = Graph.load(parse(text))
    before.set_constant("w", np.abs(before.constants()["w"].astype(np.float32)))
    QuantizeDynamic().run(before, Context(original=before.clone()))
    graph, context = converted(before, ToFloat16(compute=True))
    assert context.notes["computed"] == []
    feeds = {"x": np.ones((2, 256), np.float32)}
    assert_same_outputs(before.to_model(), graph, feeds=feeds, tolerance=1e-3)


@pytest.mark.parametrize("compute", [False, True])
def test_weights_that_are_too_small_stay(compute: bool) -> None:
    text = "net (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }"
    before = Graph.load(parse(text))
    small = before.constants()["w"].astype(np.float32) * np.float32(1e-8)
    before.set_constant("w", small)
    graph, context = converted(before, ToFloat16(compute=compute))
    kept = context.notes["kept_single"]
    assert isinstance(kept, dict)
    assert str(kept["w"]).endswith("are too small for float16")
    feeds = {"x": np.ones((2, 64), np.float32)}
    assert_same_outputs(before.to_model(), graph, feeds=feeds, tolerance=0.0)


def test_a_divisor_of_which_some_would_be_0_stays() -> None:
    text = "net (float[N,64] x) => (float[N,64] y) <float[64] w> { y = Div(x, w) }"
    before = Graph.load(parse(text))
    divisor = np.ones(64, np.float32)
    divisor[3] = 1e-9
    before.set_constant("w", divisor)
    for step in (ToFloat16(), ToFloat16(compute=True)):
        graph, _ = converted(before, step)
        feeds = {"x": np.ones((2, 64), np.float32)}
        assert_same_outputs(before.to_model(), graph, feeds=feeds, tolerance=0.0)


def test_tensors_that_are_small_on_all_inputs_stay() -> None:
    text = "net (float[N,8] x, float[N,8] z) => (float[N,8] y, float[N,8] t)"
    before = Graph.load(parse(f"{text} {{ y = Neg(x)\nt = Neg(z) }}"))
    x = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    data = Dataset.from_arrays({"x": x, "z": x * np.float32(1e-6)})
    _, context = converted(before, ToFloat16(compute=True), data)
    assert context.notes["computed"] == ["y"]
    small = context.notes["too_small"]
    assert isinstance(small, dict)
    assert list(small) == ["z", "t"]


@pytest.mark.parametrize(("opset", "computed"), [(13, ["m"]), (17, ["m"]), (22, ["c", "m"])])
def test_operators_compute_only_in_types_they_are_defined_for(
    opset: int, computed: list[str]
) -> None:
    text = """net (float[N,4,4,4] x) => (float[N,4,4,8] m) <float[4,4,3,3] w, float[4,8] v> {
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
        m = MatMul(c, v)
    }"""
    before = Graph.load(parse(text, opset=opset))
    _, context = converted(before, ToFloat16(type="bfloat16", compute=True))
    assert context.notes["computed"] == computed
