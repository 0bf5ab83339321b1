"""Newer operator sets: a converted model computes what it did, whatever its size."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import version_converter

from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.quantize.upgrading import require_opset
from tests.asserting import assert_same_outputs, assert_valid, parse, random_inputs

UPSAMPLE = """net (float[N,2,8,8] x) => (float[N,2,16,16] y) <float[4] s = {{1,1,2,2}}> {{
    r = Upsample<mode="{mode}">(x, s)
    y = Relu(r)
}}"""

RESIZE = """net (float[N,2,8,8] x) => (float[N,2,K,L] y) <float[4] s = {{1,1,{scale},{scale}}}> {{
    r = Resize<mode="{mode}">(x, s)
    y = Relu(r)
}}"""

BODY = """net (float[N,2,8,8] x, bool c) => (float[N,2,K,L] y) <float[4] s = {1,1,0.75,0.75}> {
    y = If(c) <
        then_branch = up () => (float[N,2,K,L] a) { a = Resize<mode="linear">(x, s) },
        else_branch = down () => (float[N,2,K,L] b) { b = Resize<mode="nearest">(x, s) }
    >
}"""


def converted(text: str, opset: int, version: int = 13) -> tuple[onnx.ModelProto, Graph]:
    model = parse(text, opset=opset)
    graph = Graph.load(model)
    require_opset(graph, version, "the test")
    assert graph.opset == version
    assert_valid(graph)
    return model, graph


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("version", [13, 21])
def test_upsampled_elements_stay(mode: str, version: int) -> None:
    model, graph = converted(UPSAMPLE.format(mode=mode), 9, version)
    assert_same_outputs(model, graph, tolerance=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", ["0.5", "0.75", "0.34", "1.5", "2"])
def test_resized_elements_stay(mode: str, scale: str) -> None:
    model, graph = converted(RESIZE.format(mode=mode, scale=scale), 10)
    assert_same_outputs(model, graph, tolerance=1e-6)


@pytest.mark.parametrize("taken", [True, False])
def test_resized_elements_of_bodies_stay(*, taken: bool) -> None:
    model, graph = converted(BODY, 10)
    feeds = {"x": random_inputs(model)["x"], "c": np.array(taken)}
    assert_same_outputs(model, graph, feeds=feeds, tolerance=1e-6)


def test_weights_do_not_go_through_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protobuf refuses 2 GiB, and copies."""
    text = """net (float[N,64] x) => (float[N,256] y) <float[64,256] w> {
        h = MatMul(x, w)  y = Relu(h) }"""
    graph, sizes = Graph.load(parse(text, opset=11)), list[int]()
    graph.set_metadata("told", "before")
    before, weight = graph.to_model(), graph.constants()["w"]
    convert = version_converter.convert_version

    def watched(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        sizes.append(model.ByteSize())
        return convert(model, version)

    monkeypatch.setattr(version_converter, "convert_version", watched)
    require_opset(graph, 13, "the test")
    assert sizes
    assert max(sizes) < weight.nbytes // 8
    assert np.shares_memory(graph.constants()["w"], weight)
    assert graph.metadata["told"] == "before"
    assert_valid(graph)
    assert_same_outputs(before, graph)


def test_functions_are_not_lost() -> None:
    text = """<ir_version: 8, opset_import: ["" : 11, "mine" : 1]>
    net (float[N,4] x) => (float[N,4] y) { y = mine.Twice(x) }
    <domain: "mine", opset_import: ["" : 11]> Twice (a) => (b) { b = Add(a, a) }"""
    graph = Graph.load(parse(text))
    before = graph.fingerprint()
    with pytest.raises(ModelError, match=r"functions of its own \('Twice'\).*inline-functions"):
        require_opset(graph, 13, "the test")
    assert graph.fingerprint() == before


def test_every_failure_of_the_converter_is_one_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        raise version_converter.ConvertError("Unknown tensor data type")

    monkeypatch.setattr(version_converter, "convert_version", failing)
    graph = Graph.load(parse("net (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", opset=11))
    with pytest.raises(ModelError, match=r"needs operator set 13.*\(Unknown tensor data type\)"):
        require_opset(graph, 13, "the test")
