"""refit and remove-and-refit: what was lost and can be made up for is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from graphopt.cost import cost
from graphopt.coupling import couple, prepare, remove
from graphopt.data import Dataset
from graphopt.errors import BudgetError, DataError, RecipeError
from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.passbase import Context
from graphopt.refit import merged_traces, noted_traces, traces_are_current, traces_of, write_traces
from passes.refit import Refit
from passes.remove_and_refit import RemoveAndRefit
from passes.remove_channels import RemoveChannels
from tests.asserting import parse, run_model

RESIDUAL = """residual (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] w0, float[8] b0, float[8,8,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2,
 float[8,1,3,3] w3, float[8] b3, float[8,8,3,3] w4, float[5,8] w5, float[5] b5> {
    c0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0, b0)
    r0 = Relu(c0)
    c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r0, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r1, w2, b2)
    s2 = Add(c2, r0)
    r2 = Relu(s2)
    c3 = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=8>(r2, w3, b3)
    r3 = Relu(c3)
    c4 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r3, w4)
    r4 = Relu(c4)
    p = GlobalAveragePool(r4)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w5, b5)
}"""


def redundant(*, seed: int = 0) -> Graph:
    """A network half of whose inner channels repeat others."""
    graph = Graph.load(parse(RESIDUAL, seed=seed))
    rng = np.random.default_rng(seed)
    for name, array in graph.constants().items():
        graph.set_constant(name, 0.3 * array.astype(np.float32))
    for weight, bias in (("w1", "b1"), ("w4", None)):
        array = graph.constants()[weight]
        mixed = np.concatenate([array[:4], array[rng.permutation(4)]])
        graph.set_constant(weight, mixed)
        if bias is not None:
            old = graph.constants()[bias]
            copies = [int(np.flatnonzero((array[:4] == row).all((1, 2, 3)))[0]) for row in mixed]
            graph.set_constant(bias, old[copies])
    return graph


def inputs(count: int = 96, *, seed: int = 5) -> Dataset:
    x = np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)
    return Dataset.from_arrays({"x": x})


def outputs(graph: Graph, feeds: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    (y,) = run_model(graph.to_model(), feeds)
    return np.asarray(y, np.float32)


def relative_error(graph: Graph, original: Graph) -> float:
    x = np.random.default_rng(9).standard_normal((64, 3, 8, 8)).astype(np.float32)
    wanted = outputs(original, {"x": x})
    return float(np.mean((outputs(graph, {"x": x}) - wanted) ** 2) / wanted.var())


def cut(graph: Graph, widths: Mapping[str, list[int]]) -> None:
    prepare(graph)
    coupling = couple(graph)
    current = traces_are_current(graph)
    traces = merged_traces(noted_traces(graph), traces_of(coupling, widths))
    remove(graph, coupling, widths)
    write_traces(graph, traces, current=current)


def test_refit_makes_up_for_what_is_redundant() -> None:
    original = redundant()
    graph = original.clone()
    cut(graph, {"w1": [0, 1, 2, 3], "w4": [0, 1, 2, 3]})
    before = relative_error(graph, original)
    context = Context(original=original, calibration=inputs())
    Refit(damping=1e-8).run(graph, context)
    graph.verify()
    assert before > 0.05
    assert relative_error(graph, original) < 1e-4
    refitted = context.notes["refitted"]
    assert isinstance(refitted, dict)
    assert list(refitted) == ["c2", "c3", "c4", "y"]


def test_joint_rounds_make_up_for_more() -> None:
    original = redundant()
    left = []
    for joint in (0, 20):
        graph = original.clone()
        cut(graph, {"w1": [0, 1], "w4": [0, 1, 2, 3]})
        context = Context(original=original, calibration=inputs(256))
        Refit(joint=joint).run(graph, context)
        graph.verify()
        left.append(relative_error(graph, original))
    assert left[1] < 0.8 * left[0]
    together = context.notes["joint"]
    assert isinstance(together, dict)
    assert list(together) == ["c2", "c4", "y"]


def test_refit_of_cut_shortcut_and_depthwise_channels_lowers_the_error() -> None:
    original = redundant()
    graph = original.clone()
    cut(graph, {"w0": [0, 2, 3, 5, 6, 7]})
    before = relative_error(graph, original)
    assert noted_traces(graph)["s2"][1].tolist() == [0, 2, 3, 5, 6, 7]
    Refit().run(graph, Context(original=original, calibration=inputs()))
    graph.verify()
    assert relative_error(graph, original) < 0.5 * before


def test_traces_of_two_cuts_add_up() -> None:
    graph = redundant()
    cut(graph, {"w1": [1, 3, 5, 7]})
    cut(graph, {"w1": [0, 2]})
    assert noted_traces(graph)["c1"][1].tolist() == [1, 5]


def test_changes_between_the_cut_and_the_refit_are_refused() -> None:
    original = redundant()
    graph = original.clone()
    cut(graph, {"w1": [1, 3, 5, 7]})
    graph.set_constant("b2", 2 * graph.constants()["b2"])
    Refit().run(graph, Context(original=original, calibration=inputs()))
    (pool,) = [node for node in graph.nodes if node.op == "Flatten"]
    names = (pool.inputs[0].name,), (pool.outputs[0].name,)
    graph.apply(
        Edit(remove=(pool,), add=(NewNode("Squeeze", (*names[0], np.array([2, 3])), names[1]),))
    )
    with pytest.raises(RecipeError, match="put refit right behind remove-channels"):
        Refit().run(graph, Context(original=original, calibration=inputs()))
    RemoveChannels(ratio=0.25).run(graph, Context(original=original))
    with pytest.raises(RecipeError, match="changed after its channels were removed"):
        Refit().run(graph, Context(original=original, calibration=inputs()))


@pytest.mark.parametrize("between", [False, True])
def test_two_cuts_are_refitted(*, between: bool) -> None:
    original = redundant()
    graph = original.clone()
    for _ in range(2):
        RemoveChannels(ratio=0.25).run(graph, Context(original=original))
        if between:
            Refit().run(graph, Context(original=original, calibration=inputs()))
    traces = noted_traces(graph)
    kept = traces["c1"][1]
    (row,) = [node for node in graph.nodes if node.outputs[0].name == "c1"]
    inner = traces["r0"][1] if "r0" in traces else slice(None)
    left = graph.constants()[row.inputs[1].name]
    if not between:
        np.testing.assert_array_equal(left, original.constants()["w1"][kept][:, inner])
    before = relative_error(graph, original)
    Refit().run(graph, Context(original=original, calibration=inputs()))
    assert relative_error(graph, original) < (1.01 if between else 1.0) * before


def test_untouched_network_stays_as_it_is() -> None:
    graph = redundant()
    before = graph.content_hash()
    Refit().run(graph, Context(original=graph.clone(), calibration=inputs()))
    assert graph.content_hash() == before


def test_too_few_inputs_says_how_many() -> None:
    original = redundant()
    graph = original.clone()
    cut(graph, {"w4": [0, 1, 2, 3]})
    with pytest.raises(DataError, match="give at least 5"):
        Refit().run(graph, Context(original=original, calibration=inputs(2)))


def test_nan_is_named() -> None:
    original = redundant()
    graph = original.clone()
    cut(graph, {"w1": [0, 1, 2, 3]})
    bad = np.full((64, 3, 8, 8), np.nan, np.float32)
    with pytest.raises(DataError, match=r"tensor 'r?[cs]?\d' holds NaN"):
        Refit().run(graph, Context(original, calibration=Dataset.from_arrays({"x": bad})))


def test_remove_and_refit_finds_what_is_redundant() -> None:
    original = redundant()
    graph = original.clone()
    context = Context(original=original, calibration=inputs(256))
    RemoveAndRefit(macs=0.55, damping=1e-6).run(graph, context)
    graph.verify()
    assert cost(graph).macs <= 0.55 * cost(original).macs
    assert relative_error(graph, original) < 0.02
    families = context.notes["families"]
    assert isinstance(families, dict)
    assert "w1" in families


@pytest.mark.parametrize("importance", ["l1", "apoz", "reconstruction", "lasso"])
def test_remove_and_refit_by_another_criterion(importance: str) -> None:
    original = redundant()
    graph = original.clone()
    context = Context(original=original, calibration=inputs(128))
    RemoveAndRefit(macs=0.55, importance=importance).run(graph, context)
    graph.verify()
    assert cost(graph).macs <= 0.55 * cost(original).macs
    families = context.notes["families"]
    assert isinstance(families, dict)
    kept = families["w1"]
    assert isinstance(kept, list)
    if importance == "l1":
        weights = original.constants()
        sums = np.abs(weights["w1"]).sum((1, 2, 3))
        sums /= sums.mean()
        readers = np.abs(weights["w2"]).sum((0, 2, 3))
        scores = np.maximum(sums, readers / readers.mean())
        assert kept == sorted(np.argsort(-scores, kind="stable")[: len(kept)].tolist())


def test_too_few_inputs_to_reach_the_budget_says_how_many() -> None:
    graph = redundant()
    context = Context(original=graph.clone(), calibration=inputs(1))
    with pytest.raises(DataError, match="1 inputs are too few to judge all families; give at"):
        RemoveAndRefit(macs=0.3).run(graph, context)


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="macs must be between 0 and 1"):
        RemoveAndRefit(macs=1.0)
    with pytest.raises(RecipeError, match="joint must not be negative"):
        RemoveAndRefit(joint=-1)
    with pytest.raises(RecipeError, match="importance must be one of surgeon, activation"):
        RemoveAndRefit(importance="l3")
    with pytest.raises(RecipeError, match="damping must be above 0"):
        Refit(damping=0.0)
    with pytest.raises(RecipeError, match="needs inputs to calibrate"):
        Refit().run(redundant(), Context(original=redundant()))


def test_everything_held_says_by_what() -> None:
    text = "held (float[N,3] x) => (float[N,6] y) <float[3,6] w> { y = MatMul(x, w) }"
    graph = Graph.load(parse(text))
    data = Dataset.from_arrays({"x": np.ones((8, 3), np.float32)})
    with pytest.raises(BudgetError, match="is held by input 'x'"):
        RemoveAndRefit().run(graph, Context(original=graph.clone(), calibration=data))


CHAIN = """chain (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] w0, float[8] b0, float[8,8,3,3] w1, float[8] b1, float[5,8] w2, float[5] b2,
 int64[1] first = {0}, int64[1] width = {8}> {
    c0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0, b0)
    r0 = Relu(c0)
    c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r0, w1, b1)
    p = GlobalAveragePool(c1)
    s = Shape(x)
    n = Gather(s, first)
    shape = Concat<axis=0>(n, width)
    f = Reshape(p, shape)
    y = Gemm<transB=1>(f, w2, b2)
}"""


def test_a_cut_that_was_written_and_read_again_is_refitted() -> None:
    graph = Graph.load(parse(CHAIN, seed=0))
    original = graph.clone()
    RemoveChannels(ratio=0.5, align=1).run(graph, Context(original=original))
    again = Graph.load(graph.to_bytes())
    assert again.content_hash() == graph.content_hash()
    assert traces_are_current(again)
    for cut in (graph, again):
        Refit(samples=64).run(cut, Context(original=original, calibration=inputs()))
    assert again.content_hash() == graph.content_hash()
