"""Random inputs: shapes, types, indices in range, the ladder of sizes, and giving up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import RuntimeUnavailable
from graphopt.ir import Graph
from graphopt.runtime import Draw, random_feeds, runnable_feeds


def load(text: str, **constants: np.ndarray) -> Graph:
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + text)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return Graph.load(model)


def test_types_and_shared_symbols() -> None:
    graph = load(
        "g (float[N,T] a, bfloat16[N,T] b, bool[N] c, uint8[T] d, string[N] e, int4[3] f)"
        "=> (float[N,T] y) { y = Identity (a) }"
    )
    feeds = random_feeds(graph, 0, Draw(sizes={"N": 3, "T": 5}))
    assert {name: array.shape for name, array in feeds.items()} == {
        "a": (3, 5), "b": (3, 5), "c": (3,), "d": (5,), "e": (3,), "f": (3,)
    }  # fmt: skip
    assert [feeds[name].dtype for name in "abcdf"] == [
        np.float32, ml_dtypes.bfloat16, np.bool_, np.uint8, ml_dtypes.int4
    ]  # fmt: skip
    assert all(isinstance(text, str) for text in feeds["e"])


def test_the_seed_decides() -> None:
    graph = load("g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }")
    one, same, other = (random_feeds(graph, seed)["x"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_the_batch_shows_that_it_is_open_where_it_can() -> None:
    graph = load("g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }")
    assert runnable_feeds(graph, 0).arrays["x"].shape == (2, 4)
    assert runnable_feeds(graph, 0, batch=5).arrays["x"].shape == (5, 4)
    single = load("g (float[N,4] x) => (float[a,b] y) { y = Reshape (x, s) }", s=np.array([1, 4]))
    found = runnable_feeds(single, 0)
    assert found.arrays["x"].shape == (1, 4)
    assert found.outputs[0].shape == (1, 4)
    with pytest.raises(RuntimeUnavailable, match=r"none of 2 random inputs.*N=3"):
        runnable_feeds(single, 0, batch=3)


def test_open_images_and_sequences_climb_the_ladder() -> None:
    image = load(
        "g (float[N,1,H,W] x) => (float[a,b] y) { f = Flatten (x)  y = MatMul (f, W0) }",
        W0=np.zeros((224 * 224, 1), np.float32),
    )
    assert runnable_feeds(image, 0).arrays["x"].shape == (2, 1, 224, 224)
    sound = load(
        "g (float[N,1,samples] x) => (float[a,b,c] y) { y = Conv (x, W0) }",
        W0=np.zeros((1, 1, 400), np.float32),
    )
    assert runnable_feeds(sound, 0).arrays["x"].shape == (2, 1, 512)


def test_sizes_named_after_others_follow_them() -> None:
    graph = load(
        "g (float[batch,past] p, float[batch,total] q) => (float[batch,c] y)"
        "{ e = Concat <axis=1> (p, one)  y = Add (e, q) }",
        one=np.zeros((2, 1), np.float32),
    )
    model = graph.to_model()
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "past + 1"
    arrays = runnable_feeds(Graph.load(model), 0).arrays
    assert arrays["q"].shape[1] == arrays["p"].shape[1] + 1


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("y = Gather (W, i)", 3),
        ("c = Cast <to=6> (i)  u = Unsqueeze (c, axes)  y = Gather (W, u)", 3),
        ("t = Concat <axis=0> (i, zero)  y = Gather <axis=1> (W, t)", 4),
        ("u = Unsqueeze (i, last)  y = GatherND (W, u)", 3),
    ],
)
def test_indices_stay_inside_what_they_index(text: str, rows: int) -> None:
    constants = {"axes": np.array([0]), "zero": np.array([0]), "last": np.array([-1])}
    used = {name: value for name, value in constants.items() if name in text.replace("axis", "")}
    graph = load(
        f"g (int64[T] i) => (float y) {{ {text} }}", W=np.zeros((3, 4), np.float32), **used
    )
    drawn = random_feeds(graph, 0, Draw(sizes={"T": 500}))["i"]
    assert (drawn.min(), drawn.max()) == (0, rows - 1)


def test_an_index_into_an_open_axis_stays_below_its_size() -> None:
    graph = load("g (float[N,T] x, int64[K] i) => (float y) { y = Gather <axis=1> (x, i) }")
    drawn = random_feeds(graph, 0, Draw(sizes={"N": 2, "T": 4, "K": 100}))["i"]
    assert (drawn.min(), drawn.max()) == (0, 3)


def test_lengths_of_recurrent_layers_stay_within_the_sequence() -> None:
    graph = load(
        "g (float[T,2,3] x, int32[2] lens) => (float[a,b,c,d] y)"
        "{ y = GRU <hidden_size=2> (x, W, R, , lens) }",
        W=np.zeros((1, 6, 3), np.float32),
        R=np.zeros((1, 6, 2), np.float32),
    )
    assert runnable_feeds(graph, 0).outputs[0].shape[2] == 2
    assert (random_feeds(graph, 0, Draw(sizes={"T": 1}))["lens"] == 0).all()


def rates() -> Graph:
    """A model that takes one way for 16000, and for other rates one that needs 4 columns."""

    def body(name: str, op: str, *inputs: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, inputs, [name])], name, [], [info])

    nodes = [
        helper.make_node("Equal", ["sr", "rate"], ["c"]),
        helper.make_node(
            "If",
            ["c"],
            ["y"],
            then_branch=body("t", "Relu", "x"),
            else_branch=body("e", "MatMul", "x", "W"),
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "C"]),
            helper.make_tensor_value_info("sr", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array(16000), "rate"),
            numpy_helper.from_array(np.zeros((4, 1), np.float32), "W"),
        ],
    )
    imports = [helper.make_opsetid("", 17)]
    return Graph.load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def test_constants_that_an_input_is_compared_with_are_tried() -> None:
    graph = rates()
    assert random_feeds(graph, 0)["sr"] == 16000
    assert random_feeds(graph, 1)["sr"] < 10  # the other way has its turn
    assert runnable_feeds(graph, 1).arrays["sr"] == 16000  # but cannot be taken here


def test_bounds_of_free_integers_shrink_until_the_model_runs() -> None:
    graph = load("g (float[1,1] x, int64[40] s) => (float y) { y = Reshape (x, s) }")
    assert random_feeds(graph, 0)["s"].max() == 9
    assert runnable_feeds(graph, 0).arrays["s"].tolist() == [1] * 40


def test_zeros_and_positive_floats_are_tried_too() -> None:
    axis = load("g (float[4] x, int64 axis) => (float[4] y) { y = CumSum (x, axis) }")
    assert runnable_feeds(axis, 0).arrays["axis"] == 0
    scales = load("g (float[1,1,4,4] x, float[4] s) => (float[a,b,c,d] y) { y = Resize (x, , s) }")
    assert (runnable_feeds(scales, 0).arrays["s"] > 0).all()


def test_finite_outputs_are_preferred() -> None:
    graph = load("g (float[N,64] x) => (float[N,64] y) { y = Log (x) }")
    found = runnable_feeds(graph, 0)
    assert found.draw.positive
    assert np.isfinite(found.outputs[0]).all()
    never = load(
        "g (float[N,4] x) => (float[N,4] y) { y = Div (x, zero) }", zero=np.zeros(1, np.float32)
    )
    assert runnable_feeds(never, 0).arrays["x"].shape == (2, 4)


def test_a_model_that_never_runs_says_why() -> None:
    graph = load(
        "g (float[N,3] x) => (float[a,b] y) { h = Reshape (x, s)  y = Relu (h) }",
        s=np.array([7, -1]),
    )
    with pytest.raises(RuntimeUnavailable, match=r"none of 4 random inputs.*reshaped.*N=2"):
        runnable_feeds(graph, 0)


def test_inputs_that_are_no_tensors_are_refused() -> None:
    graph = load("g (seq(float[N]) x) => (seq(float[N]) y) { y = Identity (x) }")
    with pytest.raises(RuntimeUnavailable, match="'x' is not a tensor"):
        runnable_feeds(graph, 0)


@pytest.mark.parametrize(
    "name",
    [
        "cifar10jpeg_resnet20.bn",
        "mtcnn_pnet",
        "wild_rapidocr_ch_PP-OCRv4_det_infer",
        "wild_silero_vad_16k_op15",
        "wild_silero_vad_op18_ifless",
        "wild_text2tashkeel_rawi.int8",
    ],
)
def test_real_models_run(shared_model: Callable[[str], Path], name: str) -> None:
    found = runnable_feeds(Graph.load(shared_model(f"{name}.onnx")), 0)
    assert all(np.isfinite(output).all() for output in found.outputs)
