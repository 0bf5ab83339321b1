"""Constant channels: absorbed into the next bias where that is exact, refused where it is not."""

from __future__ import annotations

import onnx
import pytest

from graphopt.coupling import absorb_constants
from graphopt.ir import Graph
from tests.asserting import assert_same_outputs, assert_valid, parse


def slimmed(text: str, zeros: dict[str, list[int]]) -> onnx.ModelProto:
    """A model in which some rows of some constants are zero."""
    model = parse(text)
    for tensor in model.graph.initializer:
        if tensor.name in zeros:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[zeros[tensor.name]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


def absorbed(model: onnx.ModelProto) -> tuple[Graph, dict[str, str]]:
    graph = Graph.load(model)
    found = absorb_constants(graph)
    assert_valid(graph)
    assert_same_outputs(model, graph)
    return graph, dict(found.refused)


NETWORK = """net (float[N,3,8,8] x) => (float[N,4] y)
<float[6,3,3,3] w, float[6] s, float[6] tvar, float[6] m, float[6] var, float[5,6,{k},{k}] v,
 float[5] vb, float[5,4] u> {{
    a = Conv<pads=[1,1,1,1]>(x, w)
    b = BatchNormalization(a, s, tvar, m, var)
    r = Relu(b)
    c = Conv<pads=[{p},{p},{p},{p}]>(r, v{bias})
    g = GlobalAveragePool(c)
    f = Flatten(g)
    y = {last}
}}"""


@pytest.mark.parametrize("bias", ["", ", vb"])
@pytest.mark.parametrize("last", ["Gemm(f, u)", "MatMul(f, u)"])
def test_absorbed_into_the_next_bias(bias: str, last: str) -> None:
    text = NETWORK.format(k=1, p=0, bias=bias, last=last).replace(
        "" if bias else "\n float[5] vb,", "" if bias else "\n"
    )
    graph, _ = absorbed(slimmed(text, {"s": [0, 2, 5], "v": [1]}))
    assert graph.shape("w") == (3, 3, 3, 3)
    assert graph.shape("v") == (4, 3, 1, 1)


def test_padding_refuses_what_is_not_zero() -> None:
    text = NETWORK.format(k=3, p=1, bias=", vb", last="Gemm(f, u)")
    graph, refused = absorbed(slimmed(text, {"s": [0, 2], "tvar": [2]}))
    assert graph.shape("w") == (5, 3, 3, 3)
    assert "pads" in " ".join(refused.values())


def test_a_residual_channel_goes_only_if_its_sum_is_constant() -> None:
    text = """net (float[N,3,4,4] x) => (float[N,2,4,4] y)
    <float[4,3,1,1] w, float[4] wb, float[4,4,1,1] v, float[4] vb, float[2,4,1,1] u> {
        a = Conv(x, w, wb)
        r = Relu(a)
        c = Conv(r, v, vb)
        d = Add(c, r)
        y = Conv(d, u)
    }"""
    graph, _ = absorbed(slimmed(text, {"w": [0, 1], "v": [1, 2]}))
    assert graph.shape("w") == (3, 3, 1, 1)


def test_a_family_keeps_one_channel() -> None:
    text = """net (float[N,3] x) => (float[N,2] y) <float[4,3] w, float[4] b, float[4,2] v> {
        a = Gemm<transB=1>(x, w, b)
        y = MatMul(a, v)
    }"""
    graph, _ = absorbed(slimmed(text, {"w": [0, 1, 2, 3]}))
    assert graph.shape("w") == (1, 3)


def test_nothing_constant_changes_nothing() -> None:
    text = NETWORK.format(k=3, p=1, bias=", vb", last="Gemm(f, u)")
    graph = Graph.load(parse(text))
    before = graph.to_bytes()
    assert not absorb_constants(graph).removed
    assert graph.to_bytes() == before
