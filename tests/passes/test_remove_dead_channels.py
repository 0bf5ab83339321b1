"""Channels that pruning has killed go, and the outputs stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from passes.remove_dead_channels import RemoveDeadChannels
from tests.asserting import apply_pass, assert_same_outputs, assert_unchanged, assert_valid, parse

_MLP = """g (float[N,6] x) => (float[N,4] y)
<float[6,8] w, float[8] b, float[8,7] v, float[7] c, float[7,4] u> {
    a = Gemm(x, w, b)
    r = Relu(a)
    h = Gemm(r, v, c)
    s = Relu(h)
    y = MatMul(s, u)
}"""

_CONV = """g (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] k, float[8] var_b, float[6,8,3,3] q, float[6] d, float[6,5] u> {
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, k, var_b)
    r = Relu(a)
    c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r, q, d)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    y = MatMul(f, u)
}"""


def _with(model: onnx.ModelProto, **zeros: tuple[object, ...]) -> onnx.ModelProto:
    """The model with zeros at an index of some initializers."""
    for tensor in model.graph.initializer:
        if tensor.name in zeros:
            array = numpy_helper.to_array(tensor).copy()
            array[zeros[tensor.name]] = 0  # type: ignore[index]
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


_ALL = slice(None)


@pytest.mark.parametrize(
    ("zeros", "widths"),
    [
        ({"w": (_ALL, [1, 4])}, (6, 7)),  # no inputs: relu of the bias goes into the next bias
        ({"v": ([0, 5, 7],)}, (5, 7)),  # no outputs
        ({"w": (_ALL, 2), "v": ([3],)}, (6, 7)),
        ({"u": ([6],), "v": ([1], slice(0, 6))}, (7, 6)),  # one goes, and leaves another unread
    ],
)
def test_neurons(zeros: dict[str, tuple[object, ...]], widths: tuple[int, int]) -> None:
    model = _with(parse(_MLP), **zeros)
    graph = apply_pass(model, RemoveDeadChannels())
    shapes = [graph.constant(name) for name in ("w", "v")]
    assert tuple(array.shape[1] for array in shapes if array is not None) == widths
    assert_same_outputs(model, graph, tolerance=1e-5)
    assert_valid(graph)


def test_channels_of_convolutions() -> None:
    """A filter nobody reads, and one of zeros whose bias the padding keeps from going."""
    model = _with(parse(_CONV), q=(_ALL, [2, 6]), k=([5],), u=([0],))
    graph = apply_pass(model, RemoveDeadChannels())
    first, second = graph.constant("k"), graph.constant("q")
    assert first is not None
    assert second is not None
    assert (first.shape, second.shape) == ((6, 3, 3, 3), (5, 6, 3, 3))
    assert_same_outputs(model, graph, tolerance=1e-5)


def test_everything_alive() -> None:
    assert_unchanged(_MLP, RemoveDeadChannels())
    assert_unchanged(_CONV, RemoveDeadChannels())


def test_channel_that_is_read_twice_stays() -> None:
    """Once by zeros only, once not."""
    text = """g (float[N,6] x) => (float[N,3] y, float[N,2] z)
        <float[6,8] w, float[8,3] v, float[8,2] u> {
        a = MatMul(x, w)  y = MatMul(a, v)  z = MatMul(a, u) }"""
    model = _with(parse(text), v=([1, 2],), u=([2, 3],))
    graph = apply_pass(model, RemoveDeadChannels())
    weight = graph.constant("w")
    assert weight is not None
    assert weight.shape == (6, 7)
    assert_same_outputs(model, graph, tolerance=1e-5)


@pytest.mark.parametrize("zeros", [{"u": ([1, 5],)}, {"w": (_ALL, [1, 5])}])
def test_channel_that_a_transposing_gemm_reads_stays(zeros: dict[str, tuple[object, ...]]) -> None:
    """It sums over the first axis of its data: unread or constant elsewhere is not enough."""
    text = """g (float[3,6] x) => (float[3,4] y, float[3,5] z)
        <float[6,8] w, float[8] b, float[8,4] v, float[4] c, float[8,5] u> {
        a = Gemm(x, w, b)  r = Relu(a)  t = Transpose<perm=[1,0]>(r)
        y = Gemm<transA=1>(t, v, c)  z = MatMul(r, u) }"""
    model = _with(parse(text), **zeros)
    assert_same_outputs(model, apply_pass(model, RemoveDeadChannels()), tolerance=1e-5)


@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_state_that_only_the_next_step_reads_stays(op: str, gates: int) -> None:
    rows = 7 * gates
    text = f"""g (float[5,N,6] x) => (float[5,N,4] y)
        <float[1,{rows},6] w, float[1,{rows},7] r, float[7,4] u> {{
        h = {op}<hidden_size=7>(x, w, r)  s = Reshape(h, shape)  y = MatMul(s, u) }}"""
    model = _with(parse(text), u=([1, 5],))
    shape = numpy_helper.from_array(np.array([5, -1, 7], np.int64), "shape")
    model.graph.initializer.append(shape)
    assert_same_outputs(model, apply_pass(model, RemoveDeadChannels()), tolerance=1e-5)


def test_a_layer_keeps_one_channel() -> None:
    model = _with(parse(_MLP), v=(np.arange(8),))
    graph = apply_pass(model, RemoveDeadChannels())
    assert_same_outputs(model, graph, tolerance=1e-5)
    assert_valid(graph)
