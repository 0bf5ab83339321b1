"""Layers are pruned to a level and solved: every step lowers the error; energy is counted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Pass
from graphopt.sparse import kept_weights
from passes.factorize import Factorize
from passes.prune_and_refit import PruneAndRefit
from passes.prune_weights import PruneWeights
from passes.remove_channels import RemoveChannels
from tests.asserting import assert_valid, parse, run_model

_NET = """g (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] c, float[8] b, float[12,4,3,3] k, float[12] d, float[12,40] w, float[40,5] v> {
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, c, b)
    r = Relu(a)
    e = Conv<kernel_shape=[3,3], group=2>(r, k, d)
    s = Relu(e)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    h = MatMul(f, w)
    t = Relu(h)
    y = MatMul(t, v)
}"""


def _data(count: int = 200) -> Dataset:
    """Images whose pixels depend on each other, as those of photographs do."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 3, 8, 8)).cumsum(2).cumsum(3) / 4
    return Dataset.from_arrays({"x": (x[:, :1] + 0.3 * x).astype(np.float32)})


def _run(step: PruneAndRefit) -> tuple[Graph, Graph, dict[str, dict[str, float]]]:
    graph = Graph.load(parse(_NET))
    context = Context(original=graph.clone(), calibration=_data())
    step.run(graph, context)
    layers = context.notes["layers"]
    assert isinstance(layers, dict)
    return context.original, graph, layers  # type: ignore[return-value]


def test_every_filter_is_at_the_level() -> None:
    _, graph, _ = _run(PruneAndRefit(sparsity=0.75))
    for name, axis, left in (("c", 0, 7), ("k", 0, 9), ("w", 1, 3), ("v", 1, 10)):
        array = graph.constant(name)
        assert array is not None
        counts = np.count_nonzero(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1), 1)
        assert (counts == left).all(), name
    assert set(kept_weights(graph).pruned) == {"c", "k", "w", "v"}
    assert_valid(graph)


def test_each_step_lowers_the_error() -> None:
    _, _, layers = _run(PruneAndRefit(sparsity=0.6, restore=0.4))
    for report in layers.values():
        assert report["solved"] < report["restored"]
        assert report["solved"] < report["pruned"]
    assert sum(r["restored"] for r in layers.values()) < sum(r["pruned"] for r in layers.values())


def test_outputs_are_nearer_than_by_magnitude_alone() -> None:
    original, graph, _ = _run(PruneAndRefit(sparsity=0.6))
    plain = original.clone()
    for name in ("c", "k", "w", "v"):
        now, before = graph.constant(name), original.constant(name)
        assert now is not None
        assert before is not None
        plain.set_constant(name, np.where(now != 0, before, np.float32(0)))
    feeds = {"x": next(iter(_data(32).batches(32)))["x"]}
    wanted, refitted, pruned = (run_model(g, feeds)[0] for g in (original, graph, plain))
    assert np.square(refitted - wanted).mean() < 0.5 * np.square(pruned - wanted).mean()


def test_energy_orders_the_layers() -> None:
    """It adds up to one, falls in the order they went, and follows the costs."""
    _, _, layers = _run(PruneAndRefit(sparsity=0.5))
    parts = [report["energy"] for report in layers.values()]
    assert sum(parts) == pytest.approx(1)
    assert parts == sorted(parts, reverse=True)
    assert next(iter(_run(PruneAndRefit(product=1e6))[2])) == "k", "432 by 36 places"
    _, _, layers = _run(PruneAndRefit(product=1e-9))
    left = {"c": 216 + 192 + 512, "k": 432 + 512 + 432, "w": 480 + 12 + 40, "v": 200 + 40 + 5}
    shares = {name: size / sum(left.values()) for name, size in left.items()}
    for name, report in layers.items():
        assert report["energy"] == pytest.approx(shares[name], rel=1e-6)


@pytest.mark.parametrize(
    "earlier", [RemoveChannels(ratio=0.25, align=1), Factorize(rank=3, goal="macs", align=1)]
)
def test_layers_that_the_original_has_not_or_not_so_wide(earlier: Pass) -> None:
    """Each is pruned, and fitted to what it gave when it was its turn to be pruned."""
    original = Graph.load(parse(_NET))
    graph, context = original.clone(), Context(original=original, calibration=_data())
    earlier.run(graph, context)
    graph.prune()
    before, context = graph.clone(), Context(original=original, calibration=_data())
    PruneAndRefit(sparsity=0.3).run(graph, context)
    assert_valid(graph)
    assert context.notes["left_alone"] == {}
    weights = {name for name, array in graph.constants().items() if array.ndim in (2, 4)}
    assert weights == set(kept_weights(graph).pruned)
    assert weights - set(original.constants()) or graph.shape("a") != original.shape("a")
    feeds = {"x": next(iter(_data(32).batches(32)))["x"]}
    wanted, got = (run_model(g, feeds)[0] for g in (before, graph))
    assert np.square(got - wanted).mean() < 0.1 * wanted.var()


def test_behind_a_bias_that_a_caller_might_override() -> None:
    model = parse(_NET)
    model.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [8]))
    graph = Graph.load(model)
    assert graph.constant("b") is None
    PruneAndRefit().run(graph, Context(original=graph.clone(), calibration=_data()))
    assert set(kept_weights(graph).pruned) == {"k", "w", "v"}
    assert_valid(graph)


def test_what_cannot_be_solved_is_left_alone_with_a_reason() -> None:
    text = """g (float[N,12100] x) => (float[N,4] y)
    <float[12100,4] w, float[4,4] s, float[4,4] v> {
        a = MatMul(x, w)
        b = MatMul(a, s)
        c = MatMul(b, s)
        y = MatMul(c, v)
    }"""
    graph = Graph.load(parse(text))
    x = np.random.default_rng(0).standard_normal((20, 12100)).astype(np.float32)
    data = Dataset.from_arrays({"x": x})
    context = Context(original=graph.clone(), calibration=data)
    PruneAndRefit(sparsity=0.5).run(graph, context)
    assert kept_weights(graph).pruned == ("v",)
    assert context.notes["left_alone"] == {
        "w": "12100 weights per output are too many to solve for",
        "s": "what reads it is no layer that can be solved",
    }


def test_zeros_stay_zero() -> None:
    """A network that is sparser than the level is solved where it has weights."""
    graph = Graph.load(parse(_NET))
    PruneWeights(sparsity=0.8, allocation="uniform").run(graph, Context(original=graph))
    before = graph.constants()
    PruneAndRefit(sparsity=0.5).run(graph, Context(original=graph.clone(), calibration=_data()))
    for name in "ckwv":
        now = graph.constants()[name]
        assert not now[before[name] == 0].any()
        assert not np.array_equal(now, before[name])


def test_product_that_counts_for_nothing_and_product_of_a_vector_are_left_alone() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, float[5] z)
    <float[4,6] w, float[6,4] v, float[4,5] s> {
        a = MatMul(x, w)
        y = Gemm<alpha=0.0>(a, v)
        m = ReduceMean<axes=[0], keepdims=0>(x)
        z = MatMul(m, s)
    }"""
    graph = Graph.load(parse(text))
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    context = Context(original=graph.clone(), calibration=Dataset.from_arrays({"x": x}))
    PruneAndRefit().run(graph, context)
    assert kept_weights(graph).pruned == ("w",)
    assert all(np.isfinite(array).all() for array in graph.constants().values())
    why = "what reads it is no layer that can be solved"
    assert context.notes["left_alone"] == {"v": why, "s": why}


def test_no_data_and_nonsense() -> None:
    graph = Graph.load(parse(_NET))
    with pytest.raises(RecipeError, match="needs inputs to calibrate"):
        PruneAndRefit().run(graph, Context(original=graph.clone()))
    for options, says in (
        ({"sparsity": 1.0}, "sparsity must be above 0 and below 1"),
        ({"restore": 1.0}, "restore must be at least 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"memory": 0.0}, "memory must be above 0"),
    ):
        with pytest.raises(RecipeError, match=says):
            PruneAndRefit(**options)
