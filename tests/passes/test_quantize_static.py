"""quantize-static: bad input, hard weights, and when it leaves layers or all in floats."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from graphopt.data import Dataset, input_specs
from graphopt.errors import DataError, RecipeError
from graphopt.ir import Graph
from graphopt.manager import PassManager
from graphopt.passbase import Context
from graphopt.quantize import static
from graphopt.quantize.plan import Plan
from graphopt.quantize.sensitivity import Errors
from passes.quantize_static import QuantizeStatic
from tests.asserting import assert_valid, operators, parse, random_inputs, run_model
from tests.quantize.executing import calibration, decibels, quantized, run_optimized
from tests.quantize.sequences import sequences

CHAIN = """chain (float[N,4,6,6] x) => (float[N,4,6,6] y)
<float[4,4,1,1] w0, float[4] b0, float[4,4,1,1] w1, float[4] b1> {
    c = Conv<kernel_shape=[1,1]>(x, w0, b0)
    r = Relu(c)
    y = Conv<kernel_shape=[1,1]>(r, w1, b1)
}"""


def _run(graph: Graph, data: Dataset, **options: object) -> tuple[Graph, Context]:
    result = graph.clone()
    context = Context(original=graph, calibration=data)
    QuantizeStatic(**{"pays": False, **options}).run(result, context)  # type: ignore[arg-type]
    return result, context


def _data(graph: Graph, **arrays: np.ndarray) -> Dataset:
    return Dataset.from_arrays(arrays).bind(input_specs(graph))


def test_nan_in_calibration_names_the_tensor() -> None:
    graph = Graph.load(parse(CHAIN))
    x = random_inputs(graph.to_model(), size=4)["x"]
    x[2, 1] = np.nan
    with pytest.raises(DataError, match="'x' holds NaN"):
        _run(graph, _data(graph, x=x))


def test_dead_and_constant_channels() -> None:
    graph = Graph.load(parse(CHAIN))
    weight = graph.constants()["w0"].astype(np.float32).copy()
    weight[0] = 0
    weight[1] = 1e-30
    graph.set_constant("w0", weight)
    graph.set_constant("b0", np.array([5, -3, 1e-20, 0], np.float32))
    x = np.ones((8, 4, 6, 6), np.float32)
    result, _ = _run(graph, _data(graph, x=x))
    wanted, found = run_model(graph, {"x": x})[0], run_optimized(result, {"x": x})[0]
    assert decibels(wanted, found) > 30
    assert_valid(result)


def test_a_layer_that_is_always_zero() -> None:
    graph = Graph.load(parse(CHAIN))
    graph.set_constant("b0", np.full(4, -1e4, np.float32))
    data = calibration(graph)
    result, _ = _run(graph, data)
    feeds = random_inputs(graph.to_model(), size=4)
    assert decibels(run_model(graph, feeds)[0], run_optimized(result, feeds)[0]) > 30


def test_tied_weights_are_stored_once() -> None:
    tied = CHAIN.replace("(r, w1, b1)", "(r, w0, b1)").replace(" float[4,4,1,1] w1,", "")
    graph, result = quantized(tied)
    stored = [n for n, array in result.constants().items() if array.dtype == np.int8
              and array.ndim == 4]  # fmt: skip
    assert stored == ["w0_q"]
    assert operators(result).count("Conv") == 2
    feeds = random_inputs(graph.to_model())
    assert decibels(run_model(graph, feeds)[0], run_optimized(result, feeds)[0]) > 25


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_older_operator_sets_are_converted(opset: int) -> None:
    graph, result = quantized(parse(CHAIN, opset=opset))
    assert result.opset == 13
    feeds = random_inputs(graph.to_model())
    assert decibels(run_model(graph, feeds)[0], run_optimized(result, feeds)[0]) > 25


def test_a_quantized_model_is_left_alone() -> None:
    _, once = quantized(CHAIN)
    again, context = _run(once, calibration(once))
    assert again.fingerprint() == once.fingerprint()
    assert "left as it is, for the model is quantized already" in str(context.notes["remark"])


@pytest.mark.parametrize("pattern", ["Conv", "c", "r|y", "*"])
def test_excluded_layers_stay(pattern: str) -> None:
    _, result = quantized(CHAIN, exclude=pattern)
    stored = [a for a in result.constants().values() if a.dtype == np.int8 and a.ndim == 4]
    assert len(stored) == {"c": 1, "r|y": 1}.get(pattern, 0)


def test_integer_and_text_inputs_pass_by() -> None:
    text = """mixed (float[N,4,6,6] x, int64[N] k, string[N] s) => (float[N,4,6,6] y, int64[N] k2,
        string[N] s2) <float[4,4,1,1] w> {
        y = Conv<kernel_shape=[1,1]>(x, w)
        k2 = Add(k, k)
        s2 = Identity(s)
    }"""
    graph = Graph.load(parse(text))
    x = np.random.default_rng(0).standard_normal((4, 4, 6, 6)).astype(np.float32)
    arrays: dict[str, np.ndarray] = {"x": x, "k": np.arange(4), "s": np.array(list("abcd"), object)}
    result, _ = _run(graph, _data(graph, **arrays), least_db=None)
    assert operators(result).count("DequantizeLinear") == 3
    assert run_optimized(result, arrays)[1].tolist() == [0, 2, 4, 6]


def test_batches_may_differ_in_shape() -> None:
    graph, data = sequences()
    _, timed = _run(graph, data, samples=40, pays=True)
    result, context = _run(graph, data, samples=40)
    assert timed.notes["inputs"] == context.notes["inputs"] == 40
    assert operators(result).count("QuantizeLinear") == 2
    for feeds in list(data.batches(10))[4:]:
        assert decibels(run_model(graph, feeds)[0], run_optimized(result, feeds)[0]) > 25


def test_inputs_without_elements_are_refused() -> None:
    text = """empty (float[N,M] x) => (float[N,4] y) <float[3,4] w> { y = MatMul(x, w) }"""
    graph = Graph.load(parse(text.replace("M]", "3,0]").replace("[3,4] w", "[0,4] w")))
    with pytest.raises(DataError, match="had no values"):
        _run(graph, _data(graph, x=np.zeros((4, 3, 0), np.float32)))


def test_a_layer_that_ruins_the_outputs_goes_back() -> None:
    longer = CHAIN.replace("<float", "<float[4,4,1,1] w2, float", 1).replace(
        "c = Conv<kernel_shape=[1,1]>(x,", "i = Conv<kernel_shape=[1,1]>(x, w2)\n c = Conv(i,"
    )
    graph = Graph.load(parse(longer))
    weight = graph.constants()["w1"].astype(np.float32).copy()
    weight[:, 0] *= 1e-4  # channel 0 is huge and hardly matters, the others drown on its grid
    first = graph.constants()["w0"].astype(np.float32).copy()
    first[0] *= 1e4
    graph.set_constant("w1", weight)
    graph.set_constant("w0", first)
    data = calibration(graph)
    _, loose = _run(graph, data, least_db=None)
    result, context = _run(graph, data, least_db=25.0)
    feeds = random_inputs(graph.to_model(), seed=5, size=4)
    assert loose.notes["freed"] == []
    assert loose.notes["layer_errors"] == []
    table = context.notes["layer_errors"]
    assert isinstance(table, list)
    rows = [row for row in table if isinstance(row, dict)]
    freed = context.notes["freed"]
    assert isinstance(freed, list)
    assert {row["layer"] for row in rows if row["in_floats"]} == {*freed}
    assert rows[0]["in_floats"]
    assert not rows[-1]["in_floats"]
    assert "stay in floats, for integers ruin the outputs: " in str(context.notes["remark"])
    assert "dB alone" in str(context.notes["remark"])
    assert context.notes["freed"]
    assert decibels(run_model(graph, feeds)[0], run_optimized(result, feeds)[0]) > 25


def test_layer_errors_are_those_of_the_layer_alone() -> None:
    graph = Graph.load(parse(CHAIN))
    data = calibration(graph)
    _, context = _run(graph, data, layer_errors=True, calibrator="minmax", settled=None)
    table = context.notes["layer_errors"]
    assert isinstance(table, list)
    found = {str(row["layer"]): row for row in table if isinstance(row, dict)}
    assert found.keys() == {"r", "y"}
    assert sum(float(str(row["share"])) for row in found.values()) == pytest.approx(1)
    shares = [float(str(row["share"])) for row in table if isinstance(row, dict)]
    assert shares == sorted(shares, reverse=True)
    feeds = next(data.take(32).batches(32))
    (wanted,) = run_model(graph, feeds)
    for name, other in (("r", "y"), ("y", "c|r")):
        alone, _ = _run(graph, data, exclude=other, calibrator="minmax", settled=None)
        (made,) = run_optimized(alone, feeds)
        decibel = float(str(found[name]["decibels"]))
        assert decibel == pytest.approx(decibels(wanted, made), abs=0.5)
    assert "layers that lose the outputs most: " in str(context.notes["remark"])
    step = QuantizeStatic(calibrator="batch-norm", layer_errors=True)
    with pytest.raises(RecipeError, match="needs inputs to calibrate"):
        step.run(graph.clone(), Context(original=graph))


def test_integers_that_do_not_pay_are_taken_out() -> None:
    """One tiny product between floats costs more to convert than it saves."""
    text = "tiny (float[N,4] x) => (float[N,4] y) <float[4,4] w> { t = Tanh(x) y = MatMul(t, w) }"
    graph = Graph.load(parse(text))
    result, context = _run(graph, calibration(graph), pays=True, least_db=None)
    assert result.fingerprint() == graph.fingerprint()
    assert "times as long as floats" in str(context.notes["remark"])


@pytest.mark.parametrize(
    ("option", "value"),
    [("calibrator", "median"), ("samples", 0), ("seconds", 0.0), ("settled", -1.0)],
)
def test_wrong_options_are_named(option: str, value: object) -> None:
    with pytest.raises(RecipeError, match=option):
        QuantizeStatic(**{option: value})  # type: ignore[arg-type]


def test_there_is_no_time_limit_for_what_looks_at_no_inputs() -> None:
    with pytest.raises(RecipeError, match="seconds is for calibrators that look at inputs"):
        QuantizeStatic(calibrator="batch-norm", seconds=5)


def test_the_manager_needs_data() -> None:
    with pytest.raises(RecipeError, match="needs inputs to calibrate"):
        PassManager(["quantize-static"]).run(Graph.load(parse(CHAIN)))


def test_layers_that_all_ruin_the_outputs_all_stay() -> None:
    graph = Graph.load(parse(CHAIN))
    result, context = _run(graph, calibration(graph), least_db=200.0, pays=True)
    assert result.fingerprint() == graph.fingerprint()
    assert context.notes["remark"] == (
        "all stays in floats: every layer ruins the outputs on integers"
    )
    decibel = context.notes["decibels"]
    assert isinstance(decibel, float)
    assert 0 < decibel < 200


GEMMS = """gemms (float[N,8] x) => (float[N,8] y)
<float[8,8] u, float[8] a, float[8,8] v, float[8] b, float[8,8] w, float[8] c> {
    g1 = Gemm(x, u, a)
    r1 = Relu(g1)
    g2 = Gemm(r1, v, b)
    r2 = Relu(g2)
    y = Gemm(r2, w, c)
}"""


def test_what_goes_back_to_floats_is_chosen_anew_for_less_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a choice did not do, another is made of all layers: the first may be of no use."""
    asked: list[tuple[int, float]] = []
    chosen = [["g2"], ["g2"], ["g1"], ["g1", "y"]]

    def freed(
        graph: Graph, plan: Plan, alone: Mapping[str, float], total: float, budget: float
    ) -> list[str]:
        asked.append((len(plan.layers), budget))
        return chosen[len(asked) - 1]

    found = iter([1.0, 0.5, 0.2, 0.001])
    monkeypatch.setattr(static, "layers_to_free", freed)
    monkeypatch.setattr(static, "layer_errors", lambda *_: dict.fromkeys(("g1", "g2", "y"), 0.1))
    monkeypatch.setattr(Errors, "relative", lambda *_: next(found))
    graph = Graph.load(parse(GEMMS))
    result, context = _run(graph, calibration(graph), least_db=20.0, calibrator="minmax")
    assert [count for count, _ in asked] == [3, 3, 3, 3]
    assert [budget for _, budget in asked] == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    assert context.notes["freed"] == ["r1", "y"]
    assert context.notes["decibels"] == pytest.approx(30.0)
    assert operators(result).count("Gemm") == 3


def test_a_limit_that_no_choice_keeps_leaves_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Errors, "relative", lambda *_: 0.5)
    monkeypatch.setattr(static, "layers_to_free", lambda *_: ["g2"])
    graph = Graph.load(parse(GEMMS))
    result, context = _run(graph, calibration(graph), least_db=20.0, calibrator="minmax")
    assert result.fingerprint() == graph.fingerprint()
    assert context.notes["remark"] == (
        "all stays in floats: outputs keep 3.0 dB of signal over error, at least 20 are wanted"
    )


SIZES = """sizes (float[N,8] x) => (float[K] y)
<float[8,8] v, float[8] a, float[8,8] w, float zero = {0.0}, int64[1] flat = {-1}> {
    h = Gemm(x, v, a)
    s = MatMul(h, w)
    g = Greater(s, zero)
    c = Reshape(g, flat)
    f = Reshape(s, flat)
    y = Compress(f, c)
}"""

LOGARITHMS = """logarithms (float[N,8] x) => (float[N,8] y)
<float[8,8] v, float[8] a, float[8,8] w> {
    h = Gemm(x, v, a)
    s = MatMul(h, w)
    r = Relu(s)
    y = Log(r)
}"""


@pytest.mark.parametrize("text", [SIZES, LOGARITHMS])
def test_outputs_of_other_sizes_or_infinite_ones_free_layers(text: str) -> None:
    graph = Graph.load(parse(text))
    first, second = (graph.constants()[name].astype(np.float32).copy() for name in ("v", "w"))
    first[:, 0] *= 1e4  # the others drown on its grid, and their signs with them
    second[0] *= 1e-4
    graph.set_constant("v", first)
    graph.set_constant("w", second)
    result, context = _run(graph, calibration(graph), least_db=20.0)
    assert context.notes["freed"]
    assert "floats" in str(context.notes["remark"])
    feeds = next(calibration(graph).batches(16))
    (wanted,), (found,) = run_optimized(graph, feeds), run_optimized(result, feeds)
    assert wanted.shape == found.shape
    np.testing.assert_array_equal(np.isfinite(wanted), np.isfinite(found))


CLASSES = CHAIN.replace("(float[N,4,6,6] y)", "(int64[N,1,6,6] k)").replace(
    "\n}", "\n    k = ArgMax<axis=1>(y)\n}"
)


def test_integer_outputs_are_judged_by_the_scores_before_them() -> None:
    found = []
    for text in (CHAIN, CLASSES):
        graph = Graph.load(parse(text))
        _, context = _run(graph, calibration(graph), calibrator="minmax", settled=None)
        found.append(float(str(context.notes["decibels"])))
    assert math.isfinite(found[0])
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def test_an_error_that_nothing_shows_is_not_known() -> None:
    text = CHAIN.replace("(float[N,4,6,6] y)", "(int64[N,1,6,6] k)").replace(
        "\n}",
        """
    n = Size(x)
    some = Greater(n, one)
    k = If(some) <
        then_branch = best () => (int64[N,1,6,6] t) { t = ArgMax<axis=1>(y) },
        else_branch = least () => (int64[N,1,6,6] e) { e = ArgMin<axis=1>(y) }
    >
}""",
    )
    text = text.replace("float[4] b1>", "float[4] b1, int64 one = {1}>")
    graph = Graph.load(parse(text))
    result, context = _run(graph, calibration(graph))
    assert "no error is known" in str(context.notes["remark"])
    assert context.notes["decibels"] is None
    assert "DequantizeLinear" in operators(result)


def test_what_is_excluded_is_not_absorbed() -> None:
    _, result = quantized(CHAIN, exclude=" r ")
    assert operators(result).count("Relu") == 1
    text = """m (float[N,8] x) => (float[N,8] y) <float[8,8] w, float[8] b> {
        p = MatMul(x, w)
        y = Add(p, b)
    }"""
    assert "Gemm" in operators(quantized(text)[1])
    _, result = quantized(text, exclude="Add")
    assert "Gemm" not in operators(result)
    assert operators(result).count("MatMul") == 1
    (added,) = [node for node in result.nodes if node.op == "Add"]
    assert [tensor.name for tensor in added.inputs] == ["p", "b"]


def test_a_pattern_that_excludes_nothing_is_named() -> None:
    quantized(CHAIN, exclude=" Conv | | r")
    with pytest.raises(RecipeError, match=r"exclude 'Conf' names no node, no computed tensor"):
        quantized(CHAIN, exclude="Conv|Conf")
