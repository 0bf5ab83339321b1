"""Each family of operators against ONNX Runtime, old operator sets and odd attributes included."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from graphopt.errors import UnsupportedOp
from graphopt.ir import Graph
from graphopt.lens import LOWERINGS, lower
from tests.asserting import parse
from tests.lens.checking import assert_lowers


def one(node: str, x: str = "float[N,4,9,8] x", y: str = "float[?,?,?,?] y", more: str = "") -> str:
    return f"g ({x}) => ({y}) {more} {{ y = {node} }}"


CONVOLUTIONS = [
    "Conv <pads=[1,1,1,1]> (x, w)",
    "Conv <pads=[0,1,2,0], strides=[2,1]> (x, w, b)",
    'Conv <auto_pad="SAME_UPPER", strides=[2,3]> (x, w, b)',
    'Conv <auto_pad="SAME_LOWER", strides=[2,2], dilations=[1,1]> (x, w)',
    'Conv <auto_pad="VALID", dilations=[2,2]> (x, w)',
    "Conv <group=2, pads=[1,1,1,1]> (x, w2)",
    "ConvTranspose <strides=[2,2], pads=[1,0,0,1]> (x, w, b3)",
    "ConvTranspose <strides=[2,2], output_padding=[1,1], pads=[1,1,1,1]> (x, w, b3)",
    "ConvTranspose <strides=[3,2], output_shape=[27,17]> (x, w)",
    'ConvTranspose <strides=[2,2], auto_pad="SAME_UPPER"> (x, w)',
    "ConvTranspose <group=2, dilations=[2,1]> (x, w)",
]


@pytest.mark.parametrize("node", CONVOLUTIONS)
def test_convolutions(node: str) -> None:
    weights = "<float[4,4,3,3] w, float[6,2,3,3] w2, float[4] b, float[4] b3>"
    assert_lowers(one(node, more=weights))


def test_convolutions_over_one_and_three_axes() -> None:
    assert_lowers(
        "g (float[N,2,9] x) => (float[?,?,?] y) <float[3,2,4] w> { y = Conv <pads=[2,1]> (x, w) }"
    )
    assert_lowers(
        "g (float[1,2,5,4,6] x) => (float[?,?,?,?,?] y) <float[3,2,2,2,2] w>"
        "{ y = Conv <strides=[2,1,1]> (x, w) }"
    )


POOLS = [
    "MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)",
    "MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (x)",
    "MaxPool <kernel_shape=[2,3], strides=[3,2], pads=[0,1,1,0], ceil_mode=1> (x)",
    'MaxPool <kernel_shape=[3,2], strides=[2,2], auto_pad="SAME_LOWER"> (x)',
    "MaxPool <kernel_shape=[2,2], dilations=[3,2]> (x)",
    "AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)",
    "AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1> (x)",
    "AveragePool <kernel_shape=[3,3], strides=[2,3], ceil_mode=1> (x)",
    "AveragePool <kernel_shape=[3,2], pads=[2,0,0,1]> (x)",
    "AveragePool <kernel_shape=[3,2], pads=[2,0,0,1], count_include_pad=1> (x)",
    'AveragePool <kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER"> (x)',
    "LpPool <kernel_shape=[2,2], p=2, strides=[2,2]> (x)",
    "GlobalAveragePool (x)",
    "GlobalMaxPool (x)",
    "GlobalLpPool <p=2> (x)",
]


@pytest.mark.parametrize("node", POOLS)
def test_pools(node: str) -> None:
    assert_lowers(one(node))


NORMS = [
    "BatchNormalization <epsilon=0.01> (x, s, b, m, var)",
    "InstanceNormalization (x, s, b)",
    "LRN <size=3, alpha=0.1, beta=0.6, bias=1.5> (x)",
    "LpNormalization <axis=1, p=1> (x)",
    "LayerNormalization <axis=-1> (x, s8, b8)",
    "LayerNormalization <axis=2> (x, s98)",
    "MeanVarianceNormalization (x)",
]


@pytest.mark.parametrize("node", NORMS)
def test_norms(node: str) -> None:
    more = "<float[4] s, float[4] b, float[4] m, float[4] var, float[8] s8, float[8] b8, "
    assert_lowers(one(node, more=more + "float[9,8] s98>"))


LAYOUT = [
    "Reshape (x, shape)",
    "Transpose <perm=[0,3,1,2]> (x)",
    "Transpose (x)",
    "Tile (x, repeats)",
    "DepthToSpace <blocksize=2> (x)",
    'DepthToSpace <blocksize=2, mode="CRD"> (x)',
    'Pad <mode="reflect"> (x, pads)',
    'Pad <mode="edge"> (x, pads)',
    "Pad (x, pads, half)",
    "Pad (x, cuts)",
    "Slice (x, starts, ends)",
    "Slice (x, starts, ends, axes, back)",
    "Slice (x, far, near, axes, back)",
    "Slice (x, near, far, axes, back)",
    "Gather <axis=2> (x, picks)",
    "Concat <axis=-1> (x, x)",
    "Expand (x, wide)",
    "Trilu <upper=0> (x)",
]


@pytest.mark.parametrize("node", LAYOUT)
def test_layout(node: str) -> None:
    more = """<int64[4] shape = {0,-1,2,4}, int64[4] repeats = {1,2,1,2}, float half = {0.5},
        int64[8] pads = {0,1,2,1,0,0,1,3}, int64[8] cuts = {0,-1,2,0,0,0,-3,1},
        int64[2] starts = {1,-4}, int64[2] ends = {9000000000,0}, int64[2] axes = {2,3},
        int64[2] back = {1,-2},
        int64[2] far = {-20,-20}, int64[2] near = {20,-4611686018427387904},
        int64[2,2] picks = {0,-1,3,2}, int64[4] wide = {2,1,9,8}>"""
    assert_lowers(one(node, x="float[2,4,9,8] x", more=more))


def test_slices_squeezes_and_splits_of_old_operator_sets() -> None:
    assert_lowers(
        "g (float[2,1,9] x) => (float[?,?] y, float[?,?] z)"
        "{ a = Slice <starts=[1], ends=[-1], axes=[2]> (x) b = Squeeze <axes=[1]> (a)"
        "  y, z = Split <axis=1, split=[3,4]> (b) }",
        opset=9,
    )


def test_softmax_of_old_operator_sets_sees_a_matrix() -> None:
    assert_lowers(one("Softmax <axis=1> (x)"), opset=11)
    assert_lowers(one("LogSoftmax <axis=2> (x)"), opset=11)
    assert_lowers(one("Softmax <axis=1> (x)"), opset=13)


def test_clip_by_attributes_and_by_inputs() -> None:
    assert_lowers(one("Clip <min=-0.5, max=0.25> (x)"), opset=9)
    assert_lowers(one("Clip (x, low, high)", more="<float low = {0}, float high = {6}>"))
    assert_lowers("g (float[5] x, float l) => (float[5] y) { y = Clip (x, l) }")


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceProd"])
def test_reductions(op: str) -> None:
    if op == "ReduceSum":
        more = "<int64[2] axes = {1,-1}>"
        assert_lowers(one(f"{op} <keepdims=0> (x, axes)", y="float[?,?] y", more=more))
    else:
        assert_lowers(one(f"{op} <keepdims=0, axes=[1,-1]> (x)", y="float[?,?] y"))
    assert_lowers(one(f"{op} (x)"))


ARITHMETIC = ["Add (x, c)", "Sub (c, x)", "Mul (x, v)", "Div (c, x)", "Pow (x, two)", "Max (x, v)"]


@pytest.mark.parametrize("node", ARITHMETIC)
def test_arithmetic_with_constants(node: str) -> None:
    more = "<float c = {0.75}, float[1] two = {2}, float[8] v>"
    assert_lowers(one(node, more=more))


def test_integer_arithmetic() -> None:
    text = """g (int64[6] x) => (int64[6] y, int64[6] z, int64[6] m)
        <int64[6] d = {2,-2,3,-3,5,-7}>
        { y = Div (x, d) z = Mod (x, d) m = Mod <fmod=1> (x, d) }"""
    assert_lowers(text, feeds={"x": np.array([7, 7, -7, -7, 11, 20])})


LINEAR = [
    "Gemm (x, w, b)",
    "Gemm <transB=1, alpha=0.5, beta=2.0> (x, v, b)",
    "Gemm <transA=1> (x, x)",
    "Gemm <transB=1> (x, v, one)",
    "MatMul (x, w)",
    'Einsum <equation="ij, jk -> ki"> (x, w)',
]


@pytest.mark.parametrize("node", LINEAR)
def test_linear(node: str) -> None:
    more = "<float[6,3] w, float[3,6] v, float[3] b, float[1] one>"
    assert_lowers(one(node, x="float[4,6] x", y="float[?,?] y", more=more))


RESIZES = [
    ('mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"', "whole"),
    ('mode="nearest"', "whole"),
    ('mode="nearest", nearest_mode="ceil"', "part"),
    ('mode="linear"', "whole"),
    ('mode="linear", coordinate_transformation_mode="pytorch_half_pixel"', "part"),
    ('mode="linear", coordinate_transformation_mode="align_corners"', "whole"),
    ('mode="linear", coordinate_transformation_mode="asymmetric"', "part"),
    ('mode="cubic"', "whole"),
    ('mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5', "part"),
]


@pytest.mark.parametrize(("how", "scales"), RESIZES)
def test_resizes(how: str, scales: str) -> None:
    more = "<float[4] whole = {1,1,2,3}, float[4] part = {1,1,0.6,1.7}>"
    assert_lowers(one(f"Resize <{how}> (x, , {scales})", more=more))


def test_resize_to_sizes_and_of_old_operator_sets() -> None:
    more = "<int64[4] sizes = {2,4,5,13}>"
    assert_lowers(one('Resize <mode="linear"> (x, , , sizes)', more=more))
    more = "<float[4] scales = {1,1,2,2}>"
    assert_lowers(one("Resize (x, scales)", more=more), opset=10)
    assert_lowers(one("Upsample (x, scales)", more=more), opset=9)


def recurrent(op: str, gates: int, attributes: str = "", *, directions: int = 1) -> str:
    outs = "y, h, c" if op == "LSTM" else "y, h"
    types = "float[?,?,?,?] y, float[?,?,?] h" + (", float[?,?,?] c" if op == "LSTM" else "")
    return f"""g (float[5,N,3] x) => ({types})
        <float[{directions},{4 * gates},3] w, float[{directions},{4 * gates},4] r,
         float[{directions},{8 * gates}] b, float[{directions},12] p>
        {{ {outs} = {op} <hidden_size=4 {attributes}> (x, w, r, b) }}"""


RECURRENT = [
    ("LSTM", 4, "", 1),
    ("LSTM", 4, ', direction="reverse"', 1),
    ("LSTM", 4, ', direction="bidirectional"', 2),
    ("LSTM", 4, ", clip=0.3, input_forget=1", 1),
    ("GRU", 3, "", 1),
    ("GRU", 3, ', linear_before_reset=1, direction="bidirectional"', 2),
    ("RNN", 1, ', activations=["Relu"]', 1),
    ("RNN", 1, ', activations=["Affine"], activation_alpha=[0.5], activation_beta=[0.1]', 1),
]


@pytest.mark.parametrize(("op", "gates", "attributes", "directions"), RECURRENT)
def test_recurrent(op: str, gates: int, attributes: str, directions: int) -> None:
    assert_lowers(recurrent(op, gates, attributes, directions=directions))


def test_recurrent_lengths_states_and_peepholes() -> None:
    text = recurrent("LSTM", 4).replace("(x, w, r, b)", "(x, w, r, b, lens, h0, c0, p)")
    text = text.replace("float[1,12] p>", "float[1,12] p, float[1,2,4] h0, float[1,2,4] c0, "
                        "int32[2] lens = {3, 5}>")  # fmt: skip
    assert_lowers(text)


def test_values_by_index() -> None:
    assert_lowers(
        """g (float[3,5] x) => (float[?,?] v, int64[?,?] i, float[3,5] s, float[2] g)
        <int64[1] k = {2}, int64[2,2] at = {0,1,2,-1}, float[2] u>
        { v, i = TopK <axis=1> (x, k) s = ScatterND (x, at, u) g = GatherND (x, at) }"""
    )


def test_shapes_of_dynamic_inputs_are_followed() -> None:
    module = assert_lowers(
        """g (float[N,T,6] x) => (float[?,?,?,?] y, int64[?] s)
        <int64[1] two = {2}, int64[1] first = {0}, int64[1] second = {1}, int64[1] rest = {-1}>
        { s = Shape (x) n = Gather (s, first) t = Gather (s, second)
          target = Concat <axis=0> (two, n, t, rest) y = Reshape (x, target) }"""
    )
    assert "as_list" not in module.code, "a tensor was made to compute a shape"


def test_branches_loops_and_scans() -> None:
    assert_lowers(
        """g (float[3] x, bool c) => (float[3] y) <float[3] w>
        { y = If (c) <then_branch = t () => (float[3] a) { a = Mul (x, w) },
                      else_branch = e () => (float[3] b) { b = Neg (x) }> }""",
        feeds={"x": np.ones(3, np.float32), "c": np.array(True)},
    )
    assert_lowers(
        """g (float[3] x, int64 n) => (float[3] y, float[?,3] all) <bool true = {1}, float[3] w>
        { y, all = Loop (n, true, x) <body = b (int64 i, bool go, float[3] state) =>
            (bool on, float[3] next, float[3] row)
            { on = Identity (go) next = Mul (state, w) row = Add (next, x) }> }""",
        feeds={"x": np.ones(3, np.float32), "n": np.array(4)},
    )


def test_integers_that_others_read_are_exact() -> None:
    assert_lowers(
        """g (float[2,3,4,4] x) => (uint8[2,3,4,4] q, uint8[?,?,?,?] y, float[2,3,4,4] d)
        <float s = {0.04}, uint8 z = {120}, int8[2,3,3,3] w, float[2] ws = {0.02, 0.05},
         int8[2] wz = {0, 0}, float os = {0.3}, uint8 oz = {7}>
        { q = QuantizeLinear (x, s, z)
          y = QLinearConv <pads=[1,1,1,1]> (q, s, z, w, ws, wz, os, oz)
          d = DequantizeLinear (q, s, z) }"""
    )
    assert_lowers(
        """g (float[3,4] x) => (int32[?,?] y, float s) <uint8[4,2] w, uint8 wz = {3}>
        { q, s, z = DynamicQuantizeLinear (x) y = MatMulInteger (q, w, z, wz) }"""
    )


def test_an_operator_without_a_row_is_refused_by_name() -> None:
    model = parse("g (string[2] x) => (string[2] y) { y = StringNormalizer (x) }")
    model.graph.node[0].name = "clean"
    with pytest.raises(UnsupportedOp, match=r"StringNormalizer node 'clean' .* gradients"):
        lower(Graph.load(model))


def test_a_foreign_domain_is_refused() -> None:
    text = '<ir_version: 10, opset_import: ["" : 17, "own" : 1]> g (float[2] x) => (float[2] y) '
    with pytest.raises(UnsupportedOp, match=r"Relu .* domain own"):
        lower(Graph.load(parse(text + "{ y = own.Relu (x) }")))


def test_affine_grids() -> None:
    text = """g (float[1,2,3] t) => (float[?,?,?,?] y) <int64[4] size = {1,1,2,3}>
        { y = AffineGrid (t, size) }"""
    assert_lowers(text, opset=20)


def test_an_operator_defined_by_others_is_lowered_through_its_definition() -> None:
    assert "SwiGLU" not in LOWERINGS
    opset = onnx.defs.get_schema("SwiGLU").since_version
    text = "g (float[2,3] a, float[2,3] b) => (float[2,3] y) { y = SwiGLU (a, b) }"
    module = lower(Graph.load(parse(text, opset=opset)))
    gate, value = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(module(gate, value), torch.nn.functional.silu(gate) * value)
