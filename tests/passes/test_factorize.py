"""factorize: budgets, shared weights, biases, activations and bad options."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.cost import cost
from graphopt.data import Dataset, input_specs
from graphopt.errors import DataError, RecipeError
from graphopt.factorize import METHODS
from graphopt.ir import Graph
from graphopt.passbase import Context
from passes.factorize import Factorize
from passes.remove_channels import RemoveChannels
from tests.asserting import (
    assert_same_outputs,
    assert_valid,
    operators,
    parse,
    random_inputs,
    run_model,
)
from tests.passes.factorizing import error, inputs, layers, network, run
from tests.strategies import networks


@pytest.mark.parametrize("methods", [("svd", "channel"), ("spatial",), ("tucker",), ("cp",)])
def test_low_rank_is_found_and_biases_stay(methods: tuple[str, ...]) -> None:
    graph = network(rank=4)
    made, context = run(graph, Factorize(methods=methods, ratio=0.6, goal="macs"))
    assert layers(context)
    assert cost(made).macs < cost(graph).macs
    biased = [node for node in made.nodes if len(node.inputs) > 2]
    assert [node.inputs[2].name for node in biased] == ["b0", "b2", "b3"]
    if methods == ("svd", "channel"):
        assert error(made, graph) < 0.05


def test_macs_budget_is_met_with_the_least_loss() -> None:
    graph = network(rank=8)
    whole = cost(graph).macs
    errors = []
    for budget in (0.7, 0.5, 0.35):
        made, context = run(graph, Factorize(macs=budget, goal="macs", align=1))
        left = cost(made).macs / whole
        assert left <= budget
        assert context.notes["left"] == pytest.approx(left)
        assert "unmet" not in context.notes
        errors.append(error(made, graph))
    assert errors == sorted(errors)


def test_budget_that_no_ranks_meet_is_noted() -> None:
    _, context = run(network(), Factorize(macs=0.001, goal="macs"))
    unmet = context.notes["unmet"]
    assert isinstance(unmet, list)
    assert "macs 0.001: the least" in str(unmet[0])
    assert layers(context)


def test_bytes_budget_makes_the_file_smaller() -> None:
    graph = network(rank=6)
    made, context = run(graph, Factorize(bytes=0.5, align=1))
    assert cost(made).weight_bytes <= 0.5 * cost(graph).weight_bytes
    assert all(entry["time"] is None for entry in layers(context).values())


@pytest.mark.parametrize(
    "options", [{"ratio": 0.4}, {"energy": 0.99}, {"evbmf": 1.0}, {"rank": 6}, {"macs": 0.5}]
)
def test_every_rule_with_inputs(options: dict[str, float]) -> None:
    graph = network(rank=5)
    step = Factorize(goal="macs", align=1, **options)  # type: ignore[arg-type]
    made, context = run(graph, step, inputs())
    assert layers(context)
    assert error(made, graph) < 0.3


def test_activations_and_a_refit_lose_less() -> None:
    graph = network()
    plain, _ = run(graph, Factorize(macs=0.5, goal="macs", align=1))
    aware, _ = run(graph, Factorize(macs=0.5, goal="macs", align=1, refit=False), inputs())
    fitted, context = run(graph, Factorize(macs=0.5, goal="macs", align=1), inputs(256))
    assert error(aware, graph) < 0.7 * error(plain, graph)
    assert error(fitted, graph) < error(aware, graph)
    refitted = context.notes["refitted"]
    assert isinstance(refitted, dict)
    assert set(refitted) <= {"c0", "c1", "c2", "g", "y"}


def test_two_runs_are_alike() -> None:
    step = Factorize(macs=0.5, goal="macs")
    first, again = (run(network(), step, inputs())[0] for _ in range(2))
    assert first.content_hash() == again.content_hash()


def test_shared_weight_is_left_alone() -> None:
    text = """shared (float[N,32] x) => (float[N,32] y) <float[32,32] w, float[32,32] v> {
        a = MatMul(x, w)
        r = Relu(a)
        b = MatMul(r, w)
        y = MatMul(b, v)
    }"""
    graph = Graph.load(parse(text))
    made, context = run(graph, Factorize(rank=4, goal="macs"))
    assert list(layers(context)) == ["v"]
    alone = context.notes["left_alone"]
    assert alone == {"w": "its weight is shared"}
    assert operators(made) == ["MatMul", "Relu", "MatMul", "MatMul", "MatMul"]


def test_layers_in_other_precisions() -> None:
    text = "wide (double[N,32] x) => (double[N,32] y) <double[32,32] w> { y = MatMul(x, w) }"
    made, _ = run(Graph.load(parse(text)), Factorize(rank=4, goal="macs"))
    assert [str(array.dtype) for array in made.constants().values()] == ["float64"] * 2


def test_full_rank_of_what_is_low_is_exact() -> None:
    """A weight that is a product is found to be one, to the last of its rank."""
    rng = np.random.default_rng(0)
    text = "low (float[N,48] x) => (float[N,40] y) <float[48,40] w> { y = MatMul(x, w) }"
    graph = Graph.load(parse(text))
    product = rng.standard_normal((48, 5)) @ rng.standard_normal((5, 40))
    graph.set_constant("w", product.astype(np.float32))
    model = graph.to_model()
    made, context = run(graph, Factorize(energy=0.999999, goal="macs", align=1))
    assert layers(context)["w"]["ranks"] == [5]
    assert_same_outputs(model, made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, "ratio must be between 0 and 1, got 1.5"),
        ({"energy": 0.0}, "energy must be between 0 and 1"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"ratio": 0.5, "macs": 0.5}, "give one of ratio and macs"),
        ({"methods": ("svd", "qr")}, "got 'qr'"),
        ({"methods": ()}, "got none"),
        ({"align": 0}, "align must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"evbmf": -1.0}, "evbmf must be above 0"),
        ({"damping": float("nan")}, "damping must be above 0"),
        ({"rounds": -1}, "rounds must not be negative"),
        ({"latency": 0.5, "goal": "macs"}, "its goal must be latency, got macs"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Factorize(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", ["1024", "1,1024"])
def test_a_bias_that_is_computed_is_timed_with_the_layer(bias: str) -> None:
    text = f"""wide (float[16,1024] x, float[{bias}] z) => (float[16,1024] y)
    <float[1024,1024] w> {{
        c = Relu(z)
        y = Gemm(x, w, c)
    }}"""
    graph = Graph.load(parse(text))
    made, context = run(graph, Factorize(rank=32))
    assert sorted(operators(made)) == ["Gemm", "MatMul", "Relu"]
    assert layers(context)["w"]["ranks"] == [32]


def test_a_bias_that_a_caller_might_override_stays_so() -> None:
    model = parse(
        """wide (float[16,1024] x) => (float[16,1024] y) <float[1024,1024] w, float[1024] b> {
            y = Gemm(x, w, b)
        }"""
    )
    info = onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [1024])
    model.graph.input.append(info)
    made, _ = run(Graph.load(model), Factorize(rank=32))
    assert operators(made) == ["MatMul", "Gemm"]
    assert [entry.name for entry in made.to_model().graph.input] == ["x", "b"]


def test_tucker_ranks_that_the_core_cannot_have_are_not_asked_for() -> None:
    """In proportion to the full ones they would be 16 and 1, but the core has rank 9 at most."""
    text = """stem (float[1,3,16,16] x) => (float[1,64,16,16] y) <float[64,3,3,3] w> {
        y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    }"""
    graph = Graph.load(parse(text))
    _, context = run(graph, Factorize(methods=("tucker",), ratio=0.7, goal="macs"))
    assert layers(context)["w"]["ranks"] == [8, 1]


def test_rank_larger_than_every_matrix() -> None:
    graph = network()
    before = graph.content_hash()
    with pytest.raises(RecipeError, match=r"rank must be at most 96, .* got 512"):
        Factorize(rank=512).run(graph, Context(original=graph))
    assert graph.content_hash() == before


@pytest.mark.parametrize("step", [Factorize(), Factorize(rank=4)])
@pytest.mark.parametrize(
    "text",
    [
        "plain (float[N,4] x) => (float[N,4] y) { y = Relu(x) }",
        "first (float[8,N] x) => (float[8,N] y) <float[8,8] w> { y = MatMul(w, x) }",
    ],
)
def test_nothing_to_factorize(text: str, step: Factorize) -> None:
    graph = Graph.load(parse(text))
    made, context = run(graph, step)
    assert layers(context) == {}
    assert operators(made) == operators(graph)
    assert "nothing is replaced, for there is no Conv" in str(context.notes["remark"])


def test_a_vector_has_no_rows_to_sample() -> None:
    text = """vector (float[1,32] x) => (float[32] y) <float[32,32] w> {
        axes = Constant<value_ints=[0]>()
        v = Squeeze(x, axes)
        y = MatMul(v, w)
    }"""
    graph = Graph.load(parse(text))
    x = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    data = Dataset.from_arrays({"x": x}).bind(input_specs(graph))
    made, context = run(graph, Factorize(rank=8, goal="macs"), data)
    assert layers(context)["w"]["ranks"] == [8]
    assert operators(made) == ["Squeeze", "MatMul", "MatMul"]


@pytest.mark.parametrize("method", ["channel", "spatial", "tucker", "cp"])
def test_inputs_whose_squares_overflow_are_refused(method: str) -> None:
    text = """layer (float[N,8,6,6] x) => (float[N,8,4,4] y) <float[8,8,3,3] w> {
        y = Conv<kernel_shape=[3,3]>(x, w)
    }"""
    x = 1e25 * np.random.default_rng(0).standard_normal((8, 8, 6, 6)).astype(np.float32)
    step = Factorize(methods=(method,), goal="macs")
    with pytest.raises(DataError, match="'x' holds values so large that their squares overflow"):
        run(Graph.load(parse(text)), step, Dataset.from_arrays({"x": x}))


@pytest.mark.parametrize("methods", [("svd", "channel"), ("svd", "spatial"), ("svd", "tucker")])
def test_channels_of_factors_are_removed_like_others(methods: tuple[str, ...]) -> None:
    made, _ = run(network(), Factorize(methods=methods, ratio=0.5, goal="macs"))
    step, cut, context = RemoveChannels(ratio=0.5), made.clone(), Context(original=made)
    step.run(cut, context)
    assert_valid(cut)
    families = context.notes["families"]
    assert isinstance(families, dict)
    between = {tensor.name for node in made.nodes for tensor in node.outputs} - {
        tensor.name for node in network().nodes for tensor in node.outputs
    }
    assert between, "there are chains"
    assert len(families) > len(between), "the channels between factors are families too"
    masked = step.reference(made, context)
    assert_same_outputs(masked.to_model(), cut)


def test_layers_that_lost_channels_are_factorized_like_others() -> None:
    graph = network(rank=4)
    cut, context = graph.clone(), Context(original=graph)
    RemoveChannels(ratio=0.25).run(cut, context)
    made, context = run(cut, Factorize(energy=0.999, goal="macs", align=1), inputs())
    assert layers(context)
    assert cost(made).macs < cost(cut).macs
    assert error(made, cut) < 0.01


@settings(max_examples=20, deadline=None)
@given(text=networks(), seed=st.integers(0, 9))
def test_random_networks_stay_valid_and_of_one_shape(text: str, seed: int) -> None:
    model = parse(text, seed=seed)
    graph = Graph.load(model)
    feeds = random_inputs(model)
    data = Dataset.from_arrays(feeds).bind(input_specs(graph)) if seed % 2 else None
    step = Factorize(methods=tuple(METHODS), ratio=0.7, goal="macs", align=1, refit=False)
    made, context = run(graph, step, data)
    before, after = cost(graph).macs, cost(made).macs
    assert (after < before) == bool(layers(context))
    for wanted, got in zip(run_model(graph, feeds), run_model(made, feeds), strict=True):
        assert got.shape == wanted.shape
        assert np.isfinite(got).all()
