"""quantize-dynamic: integers where ONNX Runtime is fast, close to what floats give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from passes.quantize_dynamic import QuantizeDynamic
from tests.asserting import assert_same_outputs, assert_valid, operators, parse, run_model

ATTENTION = """attention (float[N,5,32] x) => (float[N,5,24] y, float[M,K] z)
<float[32,48] q, float[48] c, float[32,48] k, float[48,24] o, float[20,24] g, float[20] b,
 int64[2] s = {-1, 24}> {
    a = MatMul(x, q)
    d = Add(a, c)
    e = MatMul(x, k)
    f = Add(d, e)
    r = Relu(f)
    y = MatMul(r, o)
    h = Reshape(y, s)
    z = Gemm<transB=1, alpha=0.5, beta=2.0>(h, g, b)
}"""


def quantized(before: Graph, step: QuantizeDynamic) -> tuple[Graph, Context]:
    graph, context = before.clone(), Context(original=before)
    step.run(graph, context)
    assert_valid(graph)
    return graph, context


def test_close_to_floats_and_shared() -> None:
    before = Graph.load(parse(ATTENTION))
    graph, _ = quantized(before, QuantizeDynamic())
    ops = operators(graph)
    assert (ops.count("DynamicQuantizeLinear"), ops.count("MatMulInteger")) == (3, 4)
    assert "MatMul" not in ops
    assert "Gemm" not in ops
    x = {"x": np.random.default_rng(0).standard_normal((3, 5, 32)).astype(np.float32)}
    for wanted, found in zip(run_model(before, x), run_model(graph, x), strict=True):
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert 0 < error < 0.02
    assert graph.size_bytes() < 0.6 * before.size_bytes()


def test_onnx_runtime_makes_one_node_of_a_layer(tmp_path: Path) -> None:
    text = "one (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }"
    graph, _ = quantized(Graph.load(parse(text)), QuantizeDynamic())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(graph.to_bytes(), options, providers=["CPUExecutionProvider"])
    made = onnx.load(tmp_path / "fused.onnx").graph.node
    assert [node.op_type for node in made] == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize("bits", [7, 8])
def test_inputs_and_weights_on_the_grid_are_exact(bits: int) -> None:
    """Inputs of 0 to 255 steps, weights that reach the end of their range in every column."""
    limit = 2 ** (bits - 1) - 1
    text = "one (float[N,16] x) => (float[N,8] y) <float[16,8] w> { y = MatMul(x, w) }"
    before, rng = Graph.load(parse(text)), np.random.default_rng(4)
    weight = rng.integers(-limit, limit + 1, (16, 8)).astype(np.float32)
    weight[0] = limit
    before.set_constant("w", weight / 64)
    graph, _ = quantized(before, QuantizeDynamic(bits=8 if bits == 8 else 7))
    x = rng.integers(0, 256, (4, 16)).astype(np.float32)
    x[0, :2] = 0, 255
    assert np.abs(graph.constants()["w_codes"].astype(int)).max() <= limit
    assert_same_outputs(before.to_model(), graph, feeds={"x": x}, tolerance=1e-6)


def test_tied_weights_once_convolutions_and_tables_not_at_all() -> None:
    text = """tied (float[N,8,32] x, int64[N] ids)
    => (float[N,8,32] y, float[N,32] e, float[N,4,8,32] c)
    <float[32,32] w, float[50,32] t, float[4,1,3,3] v, int64[1] i = {1}> {
        h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, w)
        e = Gather(t, ids)
        u = Unsqueeze(x, i)  c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(u, v)
    }"""
    before = Graph.load(parse(text))
    graph, context = quantized(before, QuantizeDynamic())
    assert context.notes["quantized"] == ["w"]
    assert context.notes["left_alone"] == {
        "t": "ONNX Runtime has nothing fast for Gather with ranges taken as it runs",
        "v": "ONNX Runtime has nothing fast for Conv with ranges taken as it runs",
    }
    assert [name for name in graph.constants() if "codes" in name] == ["w_codes"]


def test_patterns_and_bad_options() -> None:
    before = Graph.load(parse(ATTENTION))
    _, context = quantized(before, QuantizeDynamic(weights=("!q",)))
    assert context.notes["quantized"] == ["k", "o", "g"]
    with pytest.raises(RecipeError, match="no weight is called 'v'"):
        quantized(before, QuantizeDynamic(weights=("v",)))
    with pytest.raises(RecipeError, match="bits is 7 or 8, got 4"):
        QuantizeDynamic(bits=4)  # type: ignore[arg-type]
