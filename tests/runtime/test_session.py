"""Loading and running models, lent weights, values numpy lacks, and reasons for failure."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import RuntimeUnavailable
from graphopt.ir import Graph
from graphopt.runtime import Optimize, Session, random_feeds
from graphopt.runtime.values import RAW_TYPES

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def parse(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + text)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return model


def product(dtype: np.dtype | type = np.float32) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(dtype)
    return parse("g (float[N,32] x) => (float[N,32] y) { y = MatMul (x, W) }", W=weight)


X = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)


@pytest.mark.parametrize("optimize", ["none", "basic", "all"])
def test_every_kind_of_model_gives_the_same(tmp_path: Path, optimize: Optimize) -> None:
    model = product()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    expected = X @ numpy_helper.to_array(model.graph.initializer[0])
    for source in (model, model.SerializeToString(), path, str(path), Graph.load(path)):
        with Session.open(source, optimize=optimize) as session:
            np.testing.assert_allclose(session.run({"x": X})[0], expected, rtol=1e-5, atol=1e-5)


def test_ports_say_names_shapes_and_types() -> None:
    model = parse(
        "g (float16[N,3,?] a, bool b, seq(int64[M]) c, bfloat16[2] d)"
        "=> (float16[N,3,?] p, bool q, seq(int64[M]) r, bfloat16[2] s)"
        "{ p = Identity (a)  q = Identity (b)  r = Identity (c)  s = Identity (d) }"
    )
    with Session.open(model) as session:
        assert [port.name for port in session.inputs] == ["a", "b", "c", "d"]
        assert [port.dtype for port in session.outputs] == [
            np.float16,
            np.bool_,
            None,
            ml_dtypes.bfloat16,
        ]
        assert session.inputs[0].shape[:2] == ("N", 3)
        assert session.outputs[1].shape == ()


def test_weights_are_lent_not_copied_when_nothing_is_optimized() -> None:
    graph = Graph.load(product())
    weight = graph.constant("W")
    assert weight is not None
    with Session.open(graph, optimize="none") as session:
        assert session.run({"x": X})[0].any()
        weight[...] = 0  # never done outside this test: arrays are immutable by convention
        assert not session.run({"x": X})[0].any()


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("float16[4,64] x) => (float16 y) { y = MatMul (x, W) }", {"W": ((64, 64), np.float16)}),
        (
            "float[4,64] x) => (float y) { d = DequantizeLinear (W, s)  y = MatMul (x, d) }",
            {"W": ((64, 64), np.int8), "s": ((), np.float32)},
        ),
        (
            "uint8[1,64,4,4] x) => (uint8 y) { y = QLinearConv (x, s, z, W, s, z, s, z) }",
            {"W": ((64, 64, 1, 1), np.uint8), "s": ((), np.float32), "z": ((), np.uint8)},
        ),
        (
            "uint8[4,64] x) => (int32 y) { y = MatMulInteger (x, W) }",
            {"W": ((64, 64), np.uint8)},
        ),
        (
            (
                "float[4,64] x) => (float y)"
                "{ y = com.microsoft.MatMulNBits <K=64, N=64, bits=4, block_size=16> (x, W, s) }"
            ),
            {"W": ((64, 4, 8), np.uint8), "s": ((256,), np.float32)},
        ),
        (
            "float[4,2,8] x) => (float y) { y = LSTM <hidden_size=16> (x, W, R) }",
            {"W": ((1, 64, 8), np.float32), "R": ((1, 64, 16), np.float32)},
        ),
        (
            (
                "float[4,64] x, bool c) => (float y) { y = If (c) <"
                "then_branch = t () => (float p) { p = MatMul (x, W) },"
                "else_branch = e () => (float q) { q = Gemm (x, W) }> }"
            ),
            {"W": ((64, 64), np.float32)},
        ),
        (
            (
                "float[4,64] x) => (float y) { y = local.f (x, W) }"
                '<domain: "local", opset_import: ["" : 21]>'
                "f (a, b) => (c) { c = MatMul (a, b) }"
            ),
            {"W": ((64, 64), np.float32)},
        ),
    ],
)
def test_operators_find_lent_weights(
    text: str, weights: dict[str, tuple[tuple[int, ...], type]]
) -> None:
    """Lending leaves a hole where the weights' file would be: nothing may read that instead."""
    rng = np.random.default_rng(0)
    imports = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "local" : 1]>'
    model = onnx.parser.parse_model(f"{imports} g ({text}")
    for name, (shape, dtype) in weights.items():
        values: np.ndarray = np.asarray(rng.uniform(1, 9, shape)).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    with Session.open(model, optimize="none") as plain:
        feeds = random_feeds(Graph.load(model), 0)
        (wanted,) = plain.run(feeds)
    with Session.open(Graph.load(model), optimize="none") as lent:
        (found,) = lent.run(feeds)
    assert np.count_nonzero(wanted) > 0
    np.testing.assert_array_equal(found, wanted)


def test_optimized_sessions_keep_their_fused_weights() -> None:
    """A Conv with a Mul folded into its weight must not get the unfolded weight back."""
    rng = np.random.default_rng(0)
    model = parse(
        "g (float[1,8,5,5] x) => (float[a,b,c,d] y) { h = Conv (x, W, B)  y = Mul (h, s) }",
        W=rng.standard_normal((16, 8, 3, 3)).astype(np.float32),
        B=rng.standard_normal(16).astype(np.float32),
        s=rng.standard_normal((16, 1, 1)).astype(np.float32),
    )
    x = rng.standard_normal((1, 8, 5, 5)).astype(np.float32)
    with (
        Session.open(Graph.load(model), optimize="none") as plain,
        Session.open(Graph.load(model), optimize="all") as fused,
    ):
        np.testing.assert_allclose(plain.run({"x": x})[0], fused.run({"x": x})[0], atol=1e-4)


def test_a_model_over_2_gib_runs_without_a_second_copy() -> None:
    model = parse("g (int64[N] i) => (float[N,b] y) { y = Gather (W, i) }")
    weight = np.zeros((2300, 250_000), np.float32)  # memory is only taken where it is written
    weight[5] = 7
    model.graph.initializer.append(TensorProto(name="W", dims=weight.shape, data_type=1))
    before = psutil.Process().memory_info().rss
    with Session.open(Graph(model, {"W": weight}), optimize="none") as session:
        assert session.run({"i": np.array([5, 0])})[0][:, 0].tolist() == [7, 0]
    assert psutil.Process().memory_info().rss - before < 2e8


def test_lending_leaves_no_file_and_does_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph.load(product())
    for folder in (tmp_path, tmp_path / "missing"):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with Session.open(graph, optimize="none") as session:
            assert not list(tmp_path.iterdir())
            assert session.run({"x": X})[0].any()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("size", [4, 5000])
def test_types_that_numpy_lacks(name: str, size: int) -> None:
    """As input, as output, and as weight, small ones being kept inline and large ones lent."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    onnx_type = name.replace("_", "")
    model = parse(
        f"g ({onnx_type}[N] x) => ({onnx_type}[N] y, float[M] z)"
        "{ y = Identity (x)  z = Cast <to=1> (W) }",
        W=np.full(size, 1.5, dtype),
    )
    x = np.array([0.5, -2], dtype)
    with Session.open(Graph.load(model), optimize="none") as session:
        y, z = session.run({"x": x})
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float32), [0.5, -2])
    np.testing.assert_array_equal(z, np.full(size, 1.5, np.float32))


@pytest.mark.parametrize("name", ["int4", "uint4", "int2"])
def test_types_below_a_byte(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    model = parse(
        f"g ({name}[N] x) => (float[N] y, {name}[N] z)"
        f"{{ y = Cast <to=1> (x)  z = Cast <to={RAW_TYPES[dtype]}> (y) }}"
    )
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 25))
    x = np.array([1, 0, 1], dtype)  # an odd number leaves half a byte over
    with Session.open(model) as session:
        y, z = session.run({"x": x})
    assert (y.tolist(), z.dtype, z.astype(int).tolist()) == ([1, 0, 1], dtype, [1, 0, 1])


def test_sequences_maps_and_strings_become_arrays() -> None:
    parts = parse(
        "g (float[4] x, string[2] s) => (seq(float[N]) y, string[2] t)"
        "{ y = SplitToSequence <axis=0> (x, two)  t = Identity (s) }",
        two=np.array(2),
    )
    with Session.open(parts) as session:
        x = np.arange(4, dtype=np.float32)
        y, t = session.run({"x": x, "s": np.array(["a", "b"], object)})
    assert y.dtype == object
    assert [part.tolist() for part in y] == [[0, 1], [2, 3]]
    assert t.tolist() == ["a", "b"]

    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[5, 9])
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    info = helper.make_value_info("y", helper.make_sequence_type_proto(kind))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    graph = helper.make_graph([node], "g", [given], [info])
    with Session.open(helper.make_model(graph, opset_imports=imports, ir_version=8)) as session:
        (rows,) = session.run({"x": np.array([[0.25, 0.75]], np.float32)})
    keys, values = rows[0]
    assert (keys.tolist(), values.tolist()) == ([5, 9], [0.25, 0.75])


def test_a_sequence_goes_in_as_it_comes_out() -> None:
    model = parse("g (seq(float[N]) x) => (seq(float[N]) y) { y = Identity (x) }")
    x = np.empty(2, object)
    x[0], x[1] = np.ones(2, np.float32), np.zeros(3, np.float32)
    with Session.open(model) as session:
        (y,) = session.run({"x": x})
    assert [part.tolist() for part in y] == [[1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"not a model", "protobuf"),
        (b"", "No graph"),
        ("/no/such/file.onnx", "doesn't exist"),
        (parse("g (float[2] x) => (float[2] y) { y = Nonsense (x) }"), "Nonsense"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(
    source: bytes | str | onnx.ModelProto, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeUnavailable, match=f"cannot load the model: .*{said}") as caught:
        Session.open(source)
    assert "\n" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "'x'"),
        ({"x": X, "z": X}, "z"),
        ({"x": X.astype(np.float64)}, "double"),
        ({"x": X[0]}, "rank"),
        ({"x": X[:, :5]}, "Got: 5 Expected: 32"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    feeds: dict[str, np.ndarray], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        Session.open(product()) as session,
        pytest.raises(RuntimeUnavailable, match=f"cannot run the model: .*{said}") as caught,
    ):
        session.run(feeds)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_reasons_leave_out_source_locations() -> None:
    model = parse("g (float[N] x, int64[M] s) => (float[a] y) { y = Reshape (x, s) }")
    with Session.open(model) as session, pytest.raises(RuntimeUnavailable) as caught:
        session.run({"x": X[0], "s": np.array([5])})
    assert "cannot be reshaped" in str(caught.value)
    assert ".h:" not in str(caught.value)


def test_closing_twice_is_harmless() -> None:
    session = Session.open(product())
    session.close()
    session.close()
