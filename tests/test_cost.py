"""What models cost, against hand counts, published counts and the list of operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.cost import Role, bind, cost, node_macs, open_dims
from graphopt.cost.counting import _BODIES
from graphopt.cost.macs import FREE, MACS
from graphopt.ir import Graph


def load(text: str, **constants: np.ndarray) -> Graph:
    """Parse ONNX text (opset 21 unless it says otherwise) and add initializers."""
    if not text.lstrip().startswith("<"):
        text = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>' + text
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return Graph.load(model)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def scale(dtype: type = np.float32) -> np.ndarray:
    return np.ones((), dtype)


@pytest.mark.parametrize(
    ("text", "constants", "macs"),
    [
        (
            (
                "g (float[N,8,9,9] x) => (float[N,o,a,b] y)"
                "{ y = Conv <group=2, strides=[2,2], pads=[1,1,1,1]> (x, W) }"
            ),
            {"W": zeros(6, 4, 3, 3)},
            6 * 5 * 5 * 4 * 9,
        ),
        (
            (
                "g (float[N,4,5,5] x) => (float[N,o,a,b] y)"
                "{ y = ConvTranspose <strides=[2,2]> (x, W) }"
            ),
            {"W": zeros(4, 3, 2, 2)},
            4 * 25 * 3 * 4,
        ),
        (
            "g (float[7,5] x) => (float[a,b] y) { y = Gemm <transA=1, transB=1> (x, W) }",
            {"W": zeros(3, 7)},
            5 * 3 * 7,
        ),
        (
            "g (float[2,1,4,5] x, float[3,5,6] w) => (float[a,b,c,d] y) { y = MatMul (x, w) }",
            {},
            2 * 3 * 4 * 6 * 5,
        ),
        (
            (
                "g (float[2,4,5] x, float[2,6,4] w) => (float[a,b,c] y)"
                "{ y = com.microsoft.FusedMatMul <transA=1, transB=1> (x, w) }"
            ),
            {},
            2 * 5 * 6 * 4,
        ),
        ("g (float[5] x, float[5] w) => (float y) { y = MatMul (x, w) }", {}, 5),
        (
            "g (float[5] x, float[2,5,3] w) => (float[a,b] y) { y = MatMul (x, w) }",
            {},
            2 * 5 * 3,
        ),
        (
            (
                "g (float[2,3,4] x, float[5,4] w) => (float[a,b,c] y)"
                '{ y = Einsum <equation="...k, ok -> ...o"> (x, w) }'
            ),
            {},
            2 * 3 * 4 * 5,
        ),
        ('g (float[3,4] x) => (float[a,b] y) { y = Einsum <equation="ij->ji"> (x) }', {}, 0),
        (
            (
                "g (float[6,N,5] x) => (float[a,b,c,d] y)"
                '{ y = LSTM <hidden_size=3, direction="bidirectional"> (x, W, R) }'
            ),
            {"W": zeros(2, 12, 5), "R": zeros(2, 12, 3)},
            6 * 2 * (12 * 5 + 12 * 3),
        ),
        (
            "g (float[6,2,5] x) => (float[a,b,c,d] y) { y = GRU <hidden_size=3> (x, W, R) }",
            {"W": zeros(1, 9, 5), "R": zeros(1, 9, 3)},
            6 * 2 * (9 * 5 + 9 * 3),
        ),
        (
            (
                "g (uint8[1,3,4,4] x) => (uint8[a,b,c,d] y)"
                "{ y = QLinearConv (x, s, z, W, s, z, s, z) }"
            ),
            {"W": np.zeros((2, 3, 3, 3), np.uint8), "s": scale(), "z": scale(np.uint8)},
            2 * 2 * 2 * 27,
        ),
        (
            "g (uint8[N,4] x) => (int32[a,b] y) { y = MatMulInteger (x, W) }",
            {"W": np.zeros((4, 5), np.uint8)},
            20,
        ),
        (
            (
                "g (float[N,4] x) => (float[a,b] y)"
                "{ y = com.microsoft.MatMulNBits <K=4, N=6, bits=4, block_size=16> (x, W, s) }"
            ),
            {"W": np.zeros((6, 1, 8), np.uint8), "s": zeros(6)},
            24,
        ),
        (
            (
                '<ir_version: 10, opset_import: ["" : 23]>'
                "g (float[2,4,7,8] q, float[2,2,9,8] k, float[2,2,9,6] v) => (float[a,b,c,d] y)"
                "{ y = Attention (q, k, v) }"
            ),
            {},
            2 * 4 * 7 * 9 * (8 + 6),
        ),
        (
            (
                '<ir_version: 10, opset_import: ["" : 23]>'
                "g (float[2,7,32] q, float[2,9,16] k, float[2,9,12] v) => (float[a,b,c] y)"
                "{ y = Attention <q_num_heads=4, kv_num_heads=2> (q, k, v) }"
            ),
            {},
            2 * 4 * 7 * 9 * (8 + 6),
        ),
    ],
)
def test_macs_of_one_operator(text: str, constants: dict[str, np.ndarray], macs: int) -> None:
    found = cost(load(text, **constants))
    assert not found.uncosted
    assert found.macs == macs


def test_every_standard_operator_has_a_row() -> None:
    known = FREE | MACS.keys() | _BODIES.keys()
    names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    # Transforms and recurrences whose count depends on the algorithm: reported as uncosted.
    assert names - known <= {"CausalConvWithState", "DFT", "LinearAttention", "STFT"}


def test_an_unknown_operator_is_counted_and_named() -> None:
    found = cost(
        load(
            '<ir_version: 10, opset_import: ["" : 17, "my.domain" : 1]>'
            "g (float[N,4] x) => (float[N,4] y)"
            "{ a = my.domain.Magic (x)  b = my.domain.Magic (a)  y = Relu (b) }"
        )
    )
    assert found.uncosted == {"my.domain:Magic": 2}
    assert found.operators == {"Relu": 1, "my.domain:Magic": 2}
    assert found.nodes == 3


def test_open_sizes_other_than_the_batch_are_not_guessed() -> None:
    graph = load(
        "g (float[N,3,height,width] x) => (float[N,o,a,b] y) { y = Conv (x, W) }",
        W=zeros(4, 3, 1, 1),
    )
    assert cost(graph).uncosted == {"Conv": 1}
    assert node_macs(graph) == {}
    found = cost(graph, sizes={"height": 5, "width": 6})
    assert (found.macs, found.uncosted) == (12 * 30, {})


def test_sizes_are_followed_through_shape_arithmetic() -> None:
    graph = load(
        """g (float[N,6,4] x) => (float[a,b] y) {
            s = Shape (x)  n = Gather (s, zero)  m = Mul (n, three)  u = Unsqueeze (m, axes)
            t = Concat <axis=0> (u, rest)  r = Reshape (x, t)  y = MatMul (r, W) }""",
        zero=np.array(0),
        three=np.array(3),
        axes=np.array([0]),
        rest=np.array([8]),
        W=zeros(8, 5),
    )
    assert cost(graph).macs == 3 * 8 * 5


def test_node_macs_are_keyed_by_output() -> None:
    graph = load(
        "g (float[N,4] x) => (float[a,b] y) { h = MatMul (x, A)  r = Relu (h)  y = MatMul (r, B) }",
        A=zeros(4, 8),
        B=zeros(8, 2),
    )
    assert node_macs(graph) == {"h": 32, "r": 0, "y": 16}


def branches(then_columns: int, else_columns: int) -> Graph:
    def body(name: str, weight: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", weight], [name])
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [info])

    choice = helper.make_node(
        "If", ["c"], ["y"], then_branch=body("t", "A"), else_branch=body("e", "B")
    )
    graph = helper.make_graph(
        [choice],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(zeros(4, then_columns), "A"),
            numpy_helper.from_array(zeros(4, else_columns), "B"),
        ],
    )
    return Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_the_dearer_branch_counts() -> None:
    assert cost(branches(3, 5)).macs == cost(branches(5, 3)).macs == 20
    assert cost(branches(3, 5)).nodes == 3
    assert node_macs(branches(3, 5)) == {"y": 20, "t": 12, "e": 20}


def loop(op: str, trips: np.ndarray | None, *, with_condition: bool) -> Graph:
    """A Loop whose body multiplies a 3x3 matrix from outside with itself (or adds it)."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node(op, ["x", "x"], ["p"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, [3, 3]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("p", TensorProto.FLOAT, [3, 3]),
        ],
    )
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 3]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("n", TensorProto.INT64, []),
    ]
    given = ["n" if trips is None else "trips", "c" if with_condition else "", "x"]
    graph = helper.make_graph(
        [helper.make_node("Loop", given, ["y"], body=body)],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 3])],
        [] if trips is None else [numpy_helper.from_array(trips, "trips")],
    )
    return Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_loops_count_where_the_trips_are_known() -> None:
    assert cost(loop("MatMul", np.array(5), with_condition=False)).macs == 5 * 27
    for unknown in (
        loop("MatMul", None, with_condition=False),
        loop("MatMul", np.array(5), with_condition=True),
    ):
        assert cost(unknown).uncosted == {"Loop": 1}
    free = cost(loop("Add", None, with_condition=True))
    assert (free.macs, free.uncosted) == (0, {})


def test_a_scan_counts_once_per_step() -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["row", "W"], ["out"])],
        "body",
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2])],
    )
    scan = helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1, scan_input_axes=[1])
    graph = helper.make_graph(
        [scan],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 7, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(zeros(3, 2), "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert cost(Graph.load(model)).macs == 7 * 6


def test_parameters_are_weights_and_shared_ones_count_once() -> None:
    graph = load(
        """g (float[N,4] x) => (float[N,b] y) {
            a = MatMul (x, W)  b = MatMul (a, W)  c = Clip (b, low)
            d = BatchNormalization (c, gamma, beta, mean, var)  y = Reshape (d, target) }""",
        W=zeros(4, 4),
        low=scale(),
        gamma=zeros(4),
        beta=zeros(4),
        mean=zeros(4),
        var=zeros(4),
        target=np.array([-1, 4]),
    )
    found = cost(graph)
    assert found.parameters == 16 + 4 + 4
    assert found.weight_bytes == 4 * 24


def test_quantized_weights_count_and_their_scales_do_not() -> None:
    graph = load(
        """g (float[N,8] x) => (float[N,b] y) {
            w = DequantizeLinear <axis=1> (W, s, z)  h = MatMul (x, w)
            b = DequantizeLinear (B, t)  y = Add (h, b) }""",
        W=np.zeros((8, 3), onnx.helper.tensor_dtype_to_np_dtype(TensorProto.INT4)),
        s=zeros(3),
        z=np.zeros(3, onnx.helper.tensor_dtype_to_np_dtype(TensorProto.INT4)),
        B=np.zeros(3, np.int32),
        t=scale(),
    )
    found = cost(graph)
    assert found.parameters == 24 + 3
    assert found.weight_bytes == 12 + 12


def test_open_dims_and_bind() -> None:
    graph = load(
        "g (float[batch,seq] x, float[?,3,a,a] i) => (float[batch,seq] y, float[b,c,d,e] j)"
        "{ y = Relu (x)  j = Relu (i) }"
    )
    roles = {dim.key: dim.role for dim in open_dims(graph)}
    assert roles == {
        "batch": Role.BATCH,
        "seq": Role.SEQUENCE,
        "i[0]": Role.BATCH,
        "a": Role.SPATIAL,
    }
    bound = bind(graph, {"batch": 2, "i[0]": 3, "a": 4})
    assert (bound.shape("y"), bound.shape("j")) == ((2, "seq"), (3, 3, 4, 4))
    assert graph.shape("x") == ("batch", "seq")


@pytest.mark.parametrize(
    ("name", "millions_of_macs", "millions_of_parameters"),
    [
        ("cifar10jpeg_resnet20.bn", 40.55, 0.2697),
        ("cifar10jpeg_resnet56.bn", 125.49, 0.8530),
        ("densenet121.bn", 2834, 7.979),
        ("mobilenet_v2.bn", 300.8, 3.505),
        ("resnet50.dyn", 4089, 25.53),
        ("vgg16_bn.bn", 15470, 138.37),
        ("vit_b_16", 17564, 86.57),
    ],
)
def test_published_counts(
    shared_model: Callable[[str], Path],
    name: str,
    millions_of_macs: float,
    millions_of_parameters: float,
) -> None:
    found = cost(Graph.load(shared_model(f"{name}.onnx")))
    assert not found.uncosted
    assert found.macs / 1e6 == pytest.approx(millions_of_macs, rel=5e-4)
    assert found.parameters / 1e6 == pytest.approx(millions_of_parameters, rel=5e-4)
