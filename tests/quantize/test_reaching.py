"""Ranges without inputs: what statistics say, and what operators make of it."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import RecipeError
from graphopt.ir import Edit, Graph, NewNode
from graphopt.manager import PassManager
from graphopt.passbase import Context
from graphopt.quantize.reaching import reaches
from passes.equalize import Equalize
from passes.fold_batch_norm import FoldBatchNorm
from passes.quantize_static import QuantizeStatic
from tests.asserting import assert_valid, operators, parse, random_inputs, run_model
from tests.quantize.executing import calibration, decibels, run_optimized

NETWORK = """net (float[N,3,16,16] x) => (float[N,5] y)
<float[16,3,3,3] w0, float[16] g0, float[16] b0, float[16] m0, float[16] v0,
 float[16,16,3,3] w1, float[16] g1, float[16] b1, float[16] m1, float[16] v1,
 float[16,16,1,1] w2, float[16] c2, float[16,1,3,3] w3, float[16] g3, float[16] b3, float[16] m3,
 float[16] v3, float[5,16] w4, float[5] c4, float zero = {0}, float six = {6}> {
    p0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0)
    q0 = BatchNormalization(p0, g0, b0, m0, v0)
    r0 = Relu(q0)
    p1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r0, w1)
    q1 = BatchNormalization(p1, g1, b1, m1, v1)
    s2 = Conv<kernel_shape=[1,1]>(r0, w2, c2)
    a = Add(q1, s2)
    r1 = Relu(a)
    p3 = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=16>(r1, w3)
    q3 = BatchNormalization(p3, g3, b3, m3, v3)
    r3 = Clip(q3, zero, six)
    t = GlobalAveragePool(r3)
    f = Flatten(t)
    y = Gemm<transB=1>(f, w4, c4)
}"""


def network(text: str = NETWORK) -> Graph:
    """With the statistics that its tensors have on normal inputs."""
    graph, rng = Graph.load(parse(text)), np.random.default_rng(1)
    for name in ("b0", "b1", "b3"):
        graph.set_constant(name, rng.normal(0, 0.5, 16).astype(np.float32))
        scale = rng.uniform(0.3, 1.5, 16) * rng.choice([-1, 1], 16)
        graph.set_constant(name.replace("b", "g"), scale.astype(np.float32))
    feeds = random_inputs(graph.to_model(), seed=0, size=64)
    for tensor in ("p0", "p1", "p3"):
        (made,) = run_model(graph.with_outputs([tensor]), feeds)
        graph.set_constant(tensor.replace("p", "m"), made.mean((0, 2, 3)))
        graph.set_constant(tensor.replace("p", "v"), made.var((0, 2, 3)))
    return graph


def test_each_rule_by_hand() -> None:
    graph = network()
    known = reaches(graph, graph)
    scale, shift = (np.abs(graph.constants()[n]).astype(np.float64) for n in ("g0", "b0"))
    shift = graph.constants()["b0"].astype(np.float64)
    np.testing.assert_allclose(known["q0"].low, shift - 6 * scale)
    np.testing.assert_allclose(known["q0"].high, shift + 6 * scale)
    np.testing.assert_array_equal(known["r0"].low, 0)
    np.testing.assert_allclose(known["r0"].high, shift + 6 * scale)
    mean, variance = (graph.constants()[n].astype(np.float64) for n in ("m1", "v1"))
    np.testing.assert_allclose(known["p1"].high, mean + 6 * np.sqrt(variance))
    weight = graph.constants()["w2"].astype(np.float64)[:, :, 0, 0]
    given = known["r0"]
    middle = weight @ given.mean + graph.constants()["c2"].astype(np.float64)
    up, down = given.high - given.mean, given.mean - given.low
    above = np.where(weight > 0, weight * up, weight * down) ** 2
    np.testing.assert_allclose(known["s2"].mean, middle)
    np.testing.assert_allclose(known["s2"].high, middle + np.sqrt(above.sum(1)))
    parts = known["q1"], known["s2"]
    squares = sum((part.high - part.mean) ** 2 for part in parts)
    np.testing.assert_allclose(known["a"].high, sum(p.mean for p in parts) + np.sqrt(squares))
    assert known["r3"].ends()[0] == 0
    assert known["r3"].ends()[1] <= 6
    assert known["t"].ends() == known["f"].ends() == known["r3"].ends()
    assert "x" not in known


def test_values_lie_within_and_fill_a_good_part() -> None:
    graph = network()
    known = reaches(graph, graph)
    feeds = random_inputs(graph.to_model(), seed=7, size=32)
    for name in ("q0", "r0", "q1", "s2", "a", "r1", "q3", "r3"):
        (values,) = run_model(graph.with_outputs([name]), feeds)
        low, high = known[name].ends()
        assert np.mean((values < low) | (values > high)) < 1e-3, name
        assert high - low < 3 * float(values.max() - values.min()), name


def test_folding_keeps_what_was_known() -> None:
    graph = network()
    before = reaches(graph, graph)
    folded = graph.clone()
    FoldBatchNorm().run(folded, Context(original=graph))
    assert "BatchNormalization" not in operators(folded)
    after = reaches(folded, graph)
    for name in ("q0", "r0", "a", "q3", "r3"):
        assert after[name].ends() == before[name].ends()
    assert not {"q0", "r0", "a", "r3"} & reaches(folded, folded).keys() - {"r3"}


def test_rescaled_tensors_are_divided() -> None:
    graph = network()
    changed = graph.clone()
    context = Context(original=graph)
    FoldBatchNorm().run(changed, context)
    Equalize().run(changed, context)
    known = reaches(changed, graph)
    feeds = random_inputs(graph.to_model(), seed=7, size=32)
    outputs = [str(tensor.name) for node in changed.nodes for tensor in node.outputs]
    rescaled = [name for name in outputs if name.endswith("_rescaled")]
    assert rescaled
    for name in rescaled:
        (values,) = run_model(changed.with_outputs([name]), feeds)
        low, high = known[name].ends()
        assert low <= values.min() <= values.max() <= high


def _quantized(graph: Graph, **options: object) -> tuple[Graph, Context]:
    folded, context = graph.clone(), Context(original=graph)
    FoldBatchNorm().run(folded, context)
    step = QuantizeStatic(calibrator="batch-norm", pays=False, **options)  # type: ignore[arg-type]
    assert not step.required()
    step.run(folded, context)
    assert_valid(folded)
    return folded, context


@pytest.mark.parametrize(
    ("range_", "floats", "least"), [((), {"r0"}, 25), ((-6.0, 6.0), set[str](), 25)]
)
def test_it_needs_no_inputs(range_: tuple[float, ...], floats: set[str], least: float) -> None:
    graph = network()
    result, context = _quantized(graph, input_range=range_)
    assert context.notes["range_unknown"] == sorted(floats)
    stored = [a for a in result.constants().values() if a.dtype == np.int8 and a.ndim > 1]
    assert len(stored) == 5 - len(floats)
    feeds = random_inputs(graph.to_model(), seed=5, size=16)
    found = run_optimized(result, feeds)[0]
    assert decibels(run_model(graph, feeds)[0], found) > least
    again = graph.clone()
    QuantizeStatic(calibrator="minmax", pays=False).run(
        again, Context(original=graph, calibration=calibration(graph))
    )
    assert (
        decibels(run_model(graph, feeds)[0], run_optimized(again, feeds)[0])
        < decibels(run_model(graph, feeds)[0], found) + 12
    )


def test_nothing_is_guessed_through_two_layers() -> None:
    graph = network()
    (adder,) = graph.consumers("s2")
    graph.apply(Edit(remove=(adder,), add=(NewNode("Conv", ("s2", "w2", "c2"), ("a",)),)))
    known = reaches(graph, graph)
    assert "s2" in known
    assert "a" not in known
    assert "r1" not in known


def test_without_statistics_it_says_what_is_missing() -> None:
    graph = network(NETWORK.replace("Clip(q3, zero, six)", "Relu(q3)"))
    folded = graph.clone()
    FoldBatchNorm().run(folded, Context(original=graph))
    step = {"quantize-static": {"calibrator": "batch-norm"}}
    with pytest.raises(RecipeError, match=r"needs BatchNormalization .* give --data"):
        PassManager([step]).run(folded)


@pytest.mark.parametrize("ends", [[1.0], [2.0, 1.0], [0.0, float("inf")], [1.0, 2.0, 3.0]])
def test_wrong_input_ranges(ends: list[float]) -> None:
    with pytest.raises(RecipeError, match="input_range must be two rising numbers"):
        QuantizeStatic(calibrator="batch-norm", input_range=tuple(ends))
    with pytest.raises(RecipeError, match="input_range is for calibrator=batch-norm"):
        QuantizeStatic(input_range=(0.0, 1.0))
