"""What is cut out of a graph computes what it did there."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from graphopt.ir import Graph, part
from tests.asserting import parse, run_model
from tests.samples import convnet


def test_initializers_that_a_caller_might_override_have_their_values() -> None:
    model = convnet()
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [8]))
    graph = Graph.load(model)
    assert graph.constant("b") is None
    (conv,) = [node for node in graph.nodes if "b" in {tensor.name for tensor in node.inputs}]
    name = conv.outputs[0].name
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    (wanted,) = run_model(graph.with_outputs([name]), {"x": x})
    (got,) = run_model(part(graph, ["x"], [name]), {"x": x})
    np.testing.assert_array_equal(got, wanted)
    given = {"x": x, "b": np.zeros(8, np.float32)}
    (got,) = run_model(part(graph, ["x", "b"], [name]), given)
    assert not np.allclose(got, wanted)


def test_a_node_that_gives_an_input_too() -> None:
    """One half of a Split is given, the other one is needed."""
    graph = Graph.load(
        parse(
            """g (float[2,4] x) => (float[2,2] y) <int64[2] sizes = {2,2}> {
                a, b = Split<axis=1>(x, sizes)
                y = Sub(a, b)
            }"""
        )
    )
    given = {"x": np.arange(8, dtype=np.float32).reshape(2, 4), "b": np.ones((2, 2), np.float32)}
    (got,) = run_model(part(graph, ["x", "b"], ["y"]), given)
    np.testing.assert_array_equal(got, given["x"][:, :2] - 1)
