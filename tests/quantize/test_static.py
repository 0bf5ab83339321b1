"""Static quantization: what runs on integers, that it computes the same, and hard cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from graphopt.ir import Graph
from graphopt.lens import trainable
from graphopt.passbase import Context
from graphopt.quantize import INT8, UINT8, asymmetric, largest, symmetric
from graphopt.quantize.placement import place
from graphopt.quantize.rules import RULES, Role
from passes.quantize_static import QuantizeStatic
from tests.asserting import assert_valid, parse, random_inputs, run_model
from tests.quantize.executing import decibels, executed, quantized, run_optimized
from tests.strategies import networks

NETWORK = """network (float[N,3,12,12] x) => (float[N,5] y)
<float[8,3,3,3] w0, float[8] b0, float[8,8,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2,
 float[5,16] w3, float[5] b3, float zero = {0}, float six = {6}> {
    c0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0, b0)
    r0 = Relu(c0)
    c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r0, w1, b1)
    s1 = Add(c1, r0)
    r1 = Relu(s1)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
    c2 = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=8>(m, w2, b2)
    r2 = Clip(c2, zero, six)
    t = Concat<axis=1>(r2, m)
    p = GlobalAveragePool(t)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
}"""


def test_a_network_runs_on_integers_alone(tmp_path: Path) -> None:
    graph, result = quantized(NETWORK)
    found = executed(result, tmp_path)
    assert not found.keys() & {"Conv", "FusedConv", "Gemm", "Add", "Relu", "Clip", "Concat"}
    assert (found["QLinearConv"], found["QGemm"], found["QuantizeLinear"]) == (3, 1, 1)
    assert found["DequantizeLinear"] == 0
    feeds = random_inputs(graph.to_model(), seed=1, size=16)
    wanted, found_values = run_model(graph, feeds)[0], run_optimized(result, feeds)[0]
    assert decibels(wanted, found_values) > 25
    assert_valid(result)


def test_weights_and_biases_are_stored_as_integers() -> None:
    graph, result = quantized(NETWORK)
    weights = {name: array for name, array in result.constants().items() if array.ndim > 1}
    assert {array.dtype for array in weights.values()} == {np.dtype(np.int8)}
    biases = [array for array in result.constants().values() if array.dtype == np.int32]
    assert sorted(len(array) for array in biases) == [5, 8, 8, 8]
    assert graph.constant("w1") is not None


def test_the_optimizer_computes_what_the_graph_says() -> None:
    """Kernels on integers differ from QuantizeLinear and float operators by one step at most."""
    text = """layer (float[N,3,9,9] x) => (float[N,4,9,9] y)
    <float[4,3,3,3] w, float[4] b> {
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
        y = Relu(c)
    }"""
    graph, result = quantized(text)
    feeds = random_inputs(graph.to_model(), seed=3, size=8)
    step = float(result.constants()["y_scale"])
    literal, fast = run_model(result, feeds)[0], run_optimized(result, feeds)[0]
    assert np.abs(literal - fast).max() <= step * 1.001
    assert np.abs(fast - _by_hand(graph, result, feeds["x"])).max() <= step * 1.001
    assert np.mean(literal != fast) < 0.01


def _by_hand(graph: Graph, result: Graph, x: np.ndarray) -> np.ndarray:
    """A convolution on integers with 32-bit sums, requantized, in numpy."""
    made = result.constants()
    ends = [made[f"{name}_{end}"] for name in ("x", "y") for end in ("scale", "zero")]
    x_scale, x_zero, y_scale, y_zero = (array.astype(np.float64) for array in ends)
    codes = np.clip(np.rint(x / x_scale) + x_zero, 0, 255) - x_zero
    padded = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, made["w_q"].astype(np.float64))
    sums += made["b_q"].astype(np.float64)[:, None, None]
    steps = sums * (x_scale * made["w_scale"].astype(np.float64) / y_scale)[:, None, None]
    return np.asarray((np.clip(np.rint(steps) + y_zero, 0, 255) - y_zero) * y_scale)


def test_the_trainable_view_computes_what_onnxruntime_does() -> None:
    graph, result = quantized(NETWORK)
    feeds = random_inputs(graph.to_model(), seed=3, size=8)
    import torch

    with trainable(result) as module, torch.no_grad():
        found = module.eval()(torch.from_numpy(feeds["x"])).numpy()
    literal, fast = run_model(result, feeds)[0], run_optimized(result, feeds)[0]
    largest_value = np.abs(literal).max()
    assert np.abs(found - literal).max() <= 0.01 * largest_value
    assert np.abs(found - fast).max() <= 0.01 * largest_value


def test_what_lies_on_the_grid_does_not_change() -> None:
    """Weights and values that are integers already pass through exactly."""
    text = """exact (float[N,2,4,4] x) => (float[N,2,4,4] y) <float[2,2,1,1] w, float[2] b> {
        y = Conv<kernel_shape=[1,1]>(x, w, b)
    }"""
    model = parse(text)
    graph = Graph.load(model)
    graph.set_constant("w", np.array([[127, 1], [-127, 2]], np.float32).reshape(2, 2, 1, 1))
    graph.set_constant("b", np.array([3, -3], np.float32))
    result = graph.clone()
    x = np.random.default_rng(0).integers(0, 2, (8, 2, 4, 4)).astype(np.float32)
    x[0, 0, 0, 0] = 255
    x[0, :, 0, 1] = 0, 0
    from graphopt.data import Dataset, input_specs

    data = Dataset.from_arrays({"x": x}).bind(input_specs(graph))
    step = QuantizeStatic(calibrator="minmax", settled=None, pays=False, least_db=None)
    step.run(result, Context(original=graph, calibration=data))
    np.testing.assert_array_equal(result.constants()["w_q"], graph.constant("w"))
    np.testing.assert_array_equal(result.constants()["w_scale"], [1, 1])
    np.testing.assert_array_equal(result.constants()["b_q"], [3, -3])
    again = symmetric(largest(graph.constants()["w"], 0), INT8, 0)
    np.testing.assert_array_equal(again.round(graph.constants()["w"]), graph.constant("w"))
    assert asymmetric(0, 255, UINT8).scale == 1


_ROWS = {
    "Add": "t = Add(a, b)",
    "AveragePool": "t = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)",
    "Concat": "t = Concat<axis=1>(a, b)",
    "Conv": "t = Conv<kernel_shape=[1,1]>(a, v)",
    "DepthToSpace": "t = DepthToSpace<blocksize=2>(a)",
    "Expand": "g = GlobalAveragePool(a) t = Expand(g, sizes)",
    "Flatten": "f = Flatten(a) t = Reshape(f, same)",
    "Gather": "t = Gather<axis=2>(a, picks)",
    "GatherElements": "t = GatherElements<axis=1>(a, zeros)",
    "GlobalAveragePool": "t = GlobalAveragePool(a)",
    "LeakyRelu": "t = LeakyRelu<alpha=0.1>(a)",
    "MaxPool": "t = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)",
    "Mul": "t = Mul(a, b)",
    "ReduceMax": "t = ReduceMax<axes=[2,3]>(a)",
    "ReduceMin": "t = ReduceMin<axes=[2,3]>(a)",
    "Relu": "t1 = Relu(a) t = Add(t1, a)",
    "Reshape": "t = Reshape(a, shape)",
    "Resize": "t = Resize<mode=\"nearest\", nearest_mode=\"floor\", "
    "coordinate_transformation_mode=\"asymmetric\">(a, , scales)",
    "Sigmoid": "t = Sigmoid(a)",
    "Slice": "t = Slice(a, start, end)",
    "Split": "r, u = Split<axis=2>(a, halves) t = Add(r, u)",
    "Squeeze": "g = Unsqueeze(a, first) t = Squeeze(g, first)",
    "Tile": "t = Tile(a, repeats)",
    "Transpose": "t = Transpose<perm=[0,1,3,2]>(a)",
    "Unsqueeze": "g = Unsqueeze(a, first) t = Squeeze(g, first)",
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(RULES))
def test_every_row_of_the_table_runs_on_integers(op: str, tmp_path: Path) -> None:
    """Between two layers, ONNX Runtime leaves nothing in floats that the table says it runs."""
    if op in ("Gemm", "MatMul"):
        body = f"y = {op}(x, w)"
        text = f"m (float[4,16] x) => (float[4,8] y) <float[16,8] w> {{ {body} }}"
    else:
        channels = {"Concat": 16, "DepthToSpace": 2}.get(op, 8)
        text = f"""m (float[1,8,8,8] x) => (float[1,4,M,K] y)
        <float[8,8,1,1] wa, float[8,8,1,1] wb, float[8,8,1,1] v, float[4,{channels},1,1] w,
         int64[4] sizes = {{1,8,4,4}}, int64[4] same = {{1,8,8,8}}, int64[2] picks = {{1,2}},
         int64[4] shape = {{1,8,4,16}}, float[4] scales = {{1,1,2,2}}, int64[1] start = {{0}},
         int64[1] end = {{4}}, int64[2] halves = {{4,4}}, int64[1] first = {{0}},
         int64[4] repeats = {{1,1,2,2}}, int64[1,8,8,8] zeros> {{
            a = Conv<kernel_shape=[1,1]>(x, wa)
            b = Conv<kernel_shape=[1,1]>(x, wb)
            {_ROWS[op]}
            y = Conv<kernel_shape=[1,1]>(t, w)
        }}"""
        if op == "Slice":
            text = text.replace("Slice(a, start, end)", "Slice(a, start, end, first)")
    graph, result = quantized(parse(text, opset=17))
    unit = next(u for u in place(graph).units if u.op == op)
    found = executed(result, tmp_path)
    floating = {"Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm"}
    assert not found.keys() & floating
    if RULES[op].role is not Role.MOVE:
        assert op not in found, found
    assert found["QuantizeLinear"] <= 1, found  # the graph's input
    assert found["DequantizeLinear"] <= 1, found  # its output
    assert unit.rule.role is RULES[op].role


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_networks_stay_whole_and_near(text: str) -> None:
    graph, result = quantized(text, calibrator="minmax")
    feeds = random_inputs(graph.to_model(), size=2)
    wanted = run_model(graph, feeds)
    assert_valid(result)
    for found in (run_model(result, feeds), run_optimized(result, feeds)):
        for want, got in zip(wanted, found, strict=True):
            assert want.shape == got.shape
            assert want.dtype == got.dtype
            assert decibels(want, got) > 8


@pytest.mark.parametrize("ends", ["", ", int64[N,8,3,3] i"])
def test_a_pool_that_gives_places_stays_in_floats(ends: str) -> None:
    text = f"""pools (float[N,4,6,6] x) => (float[N,8,3,3] y{ends})
    <float[8,4,1,1] w, float[8,8,1,1] v> {{
        c = Conv<kernel_shape=[1,1]>(x, w)
        p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
        y = Conv<kernel_shape=[1,1]>(p, v)
    }}"""
    graph, result = quantized(text)
    pooled = [unit for unit in place(graph).units if unit.op == "MaxPool"]
    assert len(pooled) == (0 if ends else 1)
    assert_valid(result)
    feeds = random_inputs(graph.to_model(), size=4)
    wanted, found = run_model(graph, feeds), run_optimized(result, feeds)
    assert decibels(wanted[0], found[0]) > 25
