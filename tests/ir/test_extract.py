"""What is cut out of a graph computes what it did there."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from graphopt.ir import Graph, part
from tests.asserting import run_model
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
