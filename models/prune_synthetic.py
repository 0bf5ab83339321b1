"""A network of 10,000 nodes and 1,000,000 channels: residual stages, concatenations, depthwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["NODES", "WIDTH", "write_synthetic"]

NODES, WIDTH = 10_000, 100
_BLOCK = 10
"""Nodes in a block: a residual pair of convolutions, a concatenation, and what leaves it."""


def write_synthetic(path: Path, count: int = NODES) -> Path:
    """Write a network of so many nodes, each with 100 channels or more, for images of one pixel."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(*shape: int) -> str:
        array = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{len(weights)}"))
        return weights[-1].name

    def node(op: str, *inputs: str, **attributes: int) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"t{len(nodes)}"]))
        nodes[-1].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        return nodes[-1].output[0]

    x = "x"
    for _ in range(count // _BLOCK):
        start = node("Relu", node("Conv", x, weight(WIDTH, WIDTH, 1, 1)))
        inside = node("Relu", node("Conv", start, weight(WIDTH, WIDTH, 1, 1)))
        alone = node("Conv", inside, weight(WIDTH, 1, 1, 1), group=WIDTH)
        total = node("Add", start, node("Conv", alone, weight(WIDTH, WIDTH, 1, 1)))
        both = node("Relu", node("Concat", total, alone, axis=1))
        x = node("Conv", both, weight(WIDTH, 2 * WIDTH, 1, 1))
    graph = helper.make_graph(
        nodes,
        "synthetic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH, 1, 1])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, WIDTH, 1, 1])],
        weights,
    )
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path
