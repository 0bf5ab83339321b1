"""Quantized models taken back to floats, and quantized anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.quantize.stored_layers import find_stored_layers, unfit_layers
from graphopt.quantize.undoing import to_floats
from passes.adaround import AdaRound
from passes.correct_bias import CorrectBias
from passes.quantize_static import QuantizeStatic
from passes.quantize_weights import QuantizeWeights
from tests.asserting import assert_valid, operators, parse, random_inputs, run_model
from tests.quantize.executing import calibration, decibels, quantized, run_optimized
from tests.quantize.test_static import NETWORK


def test_floats_come_back_under_their_names() -> None:
    graph, result = quantized(NETWORK)
    back = result.clone()
    assert to_floats(back) > 10
    assert_valid(back)
    found = Counter(operators(back))
    assert not found.keys() & {"QuantizeLinear", "DequantizeLinear"}
    assert (found["Conv"], found["Relu"], found["Clip"]) == (3, 2, 1)
    (clip,) = [node for node in back.nodes if node.op == "Clip"]
    assert [float(back.constants()[tensor.name]) for tensor in clip.inputs[1:]] == [0, 6]
    for name in ("r0", "r1", "r2", "m", "t", "p", "f", "y"):
        assert name in back
    feeds = random_inputs(graph.to_model(), seed=5, size=16)
    assert decibels(run_model(graph, feeds)[0], run_model(back, feeds)[0]) > 35
    assert back.inputs == graph.inputs
    assert back.outputs == graph.outputs


def test_an_end_that_no_input_has_reached_is_not_known() -> None:
    graph = Graph.load(parse(NETWORK))
    graph.set_constant("w2", graph.constants()["w2"].astype(np.float32) * np.float32(0.01))
    _, result = quantized(graph.to_model(), calibrator="minmax")
    to_floats(result)
    assert Counter(operators(result))["Relu"] == 3


def _again(result: Graph, original: Graph, **options: object) -> tuple[Graph, Context]:
    made, context = result.clone(), Context(result, calibration=calibration(original))
    step = QuantizeStatic(requantize=True, pays=False, settled=None, **options)  # type: ignore[arg-type]
    step.run(made, context)
    assert_valid(made)
    return made, context


def test_new_inputs_give_new_ranges_and_weights_keep_their_codes() -> None:
    """What was calibrated on inputs that are far too small works on those it is now given."""
    graph = Graph.load(parse(NETWORK))
    small = graph.clone()
    feeds = {"x": 0.05 * random_inputs(graph.to_model(), size=16)["x"]}
    from graphopt.data import Dataset, input_specs

    data = Dataset.from_arrays(feeds).bind(input_specs(graph))
    QuantizeStatic(pays=False, settled=None).run(small, Context(graph, calibration=data))
    result, context = _again(small, graph)
    assert context.notes["undone"]
    feeds = random_inputs(graph.to_model(), seed=5, size=16)
    (wanted,) = run_model(graph, feeds)
    assert decibels(wanted, run_optimized(small, feeds)[0]) < 15
    assert decibels(wanted, run_optimized(result, feeds)[0]) > 25
    old, new = ({n: a for n, a in g.constants().items() if a.dtype == np.int8 and a.ndim > 1}
                for g in (small, result))  # fmt: skip
    assert len(old) == len(new) == 4
    for codes in old.values():
        assert any(np.array_equal(codes, other) for other in new.values())


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Mapping[str, np.ndarray]) -> None:
        self._rows = iter([dict(feeds)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def _made_by_onnxruntime(graph: Graph, folder: Path, form: QuantFormat) -> Graph:
    onnx.save(graph.to_model(), folder / "float.onnx")
    feeds = random_inputs(graph.to_model(), size=16)
    target = folder / "quantized.onnx"
    quantize_static(folder / "float.onnx", target, _Reader(feeds), quant_format=form,
                    per_channel=True)  # fmt: skip
    return Graph.load(target)


def test_what_onnxruntime_has_quantized(tmp_path: Path) -> None:
    graph = Graph.load(parse(NETWORK))
    theirs = _made_by_onnxruntime(graph, tmp_path, QuantFormat.QDQ)
    result, _ = _again(theirs, graph)
    feeds = random_inputs(graph.to_model(), seed=5, size=16)
    (wanted,) = run_model(graph, feeds)
    assert decibels(wanted, run_optimized(result, feeds)[0]) > 25
    left, context = theirs.clone(), Context(theirs, calibration=calibration(graph))
    QuantizeStatic().run(left, context)
    assert left.fingerprint() == theirs.fingerprint()
    assert "quantized already" in str(context.notes["remark"])


def test_operators_on_integers_are_refused_by_name(tmp_path: Path) -> None:
    graph = Graph.load(parse(NETWORK))
    theirs = _made_by_onnxruntime(graph, tmp_path, QuantFormat.QOperator)
    with pytest.raises(RecipeError, match=r"computes by .*QLinear.*give the float model"):
        _again(theirs, graph)


def test_floats_of_eight_bits_are_refused_and_no_layer_of_integers() -> None:
    text = "net (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }"
    original = Graph.load(parse(text, opset=19))
    graph = original.clone()
    QuantizeWeights().run(graph, Context(original=original))
    codes = graph.constants()["w_codes"].astype(np.float32)
    graph.set_constant("w_codes", codes.astype(ml_dtypes.float8_e4m3fn))
    graph.reshape_notice()
    assert_valid(graph)
    assert find_stored_layers(graph) == []
    assert unfit_layers(graph) == {"y": "'w_codes' holds float8_e4m3fn, which are no integers"}
    before, context = graph.fingerprint(), Context(original, calibration=calibration(original))
    CorrectBias().run(graph, context)
    assert graph.fingerprint() == before
    AdaRound(bits=8, steps=0).run(graph, context)
    assert context.notes["errors"] == {}
    with pytest.raises(RecipeError, match="'w_codes' holds float8_e4m3fn; give the float model"):
        to_floats(graph)


def test_floats_stay_where_new_integers_do_not_pay() -> None:
    text = "tiny (float[N,4] x) => (float[N,4] y) <float[4,4] w> { t = Tanh(x) y = MatMul(t, w) }"
    graph, result = quantized(text)
    made, context = result.clone(), Context(result, calibration=calibration(graph))
    QuantizeStatic(requantize=True, least_db=None).run(made, context)
    assert "all stays in floats: " in str(context.notes["remark"])
    assert sorted(operators(made)) == ["MatMul", "Tanh"]
    assert_valid(made)
    feeds = random_inputs(graph.to_model(), seed=5, size=16)
    assert decibels(run_model(graph, feeds)[0], run_model(made, feeds)[0]) > 35


_PAIR = """net (float[N,8] x) => (float[N,16] y)
<float[8,16] w, float[1] s, float[1] t, uint8[1] z> {{
    a = MatMul(x, w)
    q = QuantizeLinear({0})
    y = DequantizeLinear({1})
}}"""


def _undone(rounder: str, reader: str) -> tuple[Graph, Graph]:
    before = Graph.load(parse(_PAIR.format(rounder, reader), opset=21))
    for name, value in (("s", 0.05), ("t", 0.1), ("z", 0)):
        if name in before:
            dtype = before.constants()[name].dtype
            before.set_constant(name, np.array([value]).astype(dtype))
    after = before.clone()
    to_floats(after)
    assert_valid(after)
    return before, after


@pytest.mark.parametrize(
    ("rounder", "reader"),
    [("a, s, z", "q, s, z"), ("a, s", "q, s"), ("a, s, z", "q, s"), ("a, s", "q, s, z")],
)
def test_a_zero_point_that_is_not_written_is_0(rounder: str, reader: str) -> None:
    before, after = _undone(rounder, reader)
    assert operators(after) == ["MatMul", "Relu"]
    feeds = random_inputs(before.to_model(), size=16)
    assert decibels(run_model(before, feeds)[0], run_model(after, feeds)[0]) > 35


@pytest.mark.parametrize(("rounder", "reader"), [("a, s, z", "q, t, z"), ("a, s", "q, t")])
def test_codes_that_are_read_with_another_scale_stay(rounder: str, reader: str) -> None:
    before, after = _undone(rounder, reader)
    assert operators(after) == operators(before)


def test_constants_keep_the_type_that_they_are_read_in() -> None:
    text = """net (float16[N,8] x) => (float16[N,16] y)
    <int8[8,16] w, float16[16] s, float16[1] t, uint8[1] z> {
        v = DequantizeLinear<axis=1>(w, s)
        a = MatMul(x, v)
        q = QuantizeLinear(a, t, z)
        y = DequantizeLinear(q, t, z)
    }"""
    before = Graph.load(parse(text, opset=21))
    for name, array in (
        ("s", np.full(16, 0.1)),
        ("t", np.array([6 / 255])),
        ("z", np.zeros(1)),
    ):
        before.set_constant(name, array.astype(before.constants()[name].dtype))
    after = before.clone()
    to_floats(after)
    assert_valid(after)
    assert operators(after) == ["MatMul", "Clip"]
    feeds = random_inputs(before.to_model(), size=16)
    assert decibels(run_model(before, feeds)[0], run_model(after, feeds)[0]) > 20


def test_an_input_that_is_only_rounded_is_still_an_output() -> None:
    text = """net (float[N,8] x) => (float[N,8] y) <float[1] s, uint8[1] z> {
        q = QuantizeLinear(x, s, z)
        y = DequantizeLinear(q, s, z)
    }"""
    after = Graph.load(parse(text, opset=21))
    to_floats(after)
    assert_valid(after)
    assert operators(after) == ["Identity"]


@pytest.mark.parametrize("factor", ["alpha", "beta"])
def test_no_layer_is_solved_for_what_it_multiplies_by_0(factor: str) -> None:
    text = f"""net (float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64] b> {{
        y = Gemm<{factor}=0.0>(x, w, b)
    }}"""
    original = Graph.load(parse(text))
    graph = original.clone()
    QuantizeWeights().run(graph, Context(original=original))
    assert unfit_layers(graph) == {"y": "it multiplies its product or its bias by 0"}
    context = Context(original, calibration=calibration(original))
    for step in (CorrectBias(), AdaRound(steps=0)):
        step.run(graph, context)
    assert all(np.isfinite(array).all() for array in graph.constants().values())
