"""Bring a graph to the operator set that knows an integer type or a layout of scales."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import version_converter

from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.ir.normalise import normalise
from graphopt.rewrite.matching import is_op

__all__ = ["require_opset"]

_log = logging.getLogger(__name__)

_IR_VERSIONS = {13: 7, 19: 9, 21: 10}
"""The file format that came with an operator set and knows its types."""

_COORDINATES_OPSET = 11
"""From here on Resize says which coordinates it means, and its default is another than before."""

_FAILURES = (
    EncodeError,
    RuntimeError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    version_converter.ConvertError,
)


def require_opset(graph: Graph, version: int, why: str) -> None:
    """Convert the graph if its operator set is older; `why` says what needs the newer one.

    Raises ModelError if ONNX's converter cannot.
    """
    if graph.opset >= version:
        return
    wanted = f"quantize: {why} needs operator set {version}, the model has {graph.opset}"
    if graph.functions:
        raise ModelError(
            f"{wanted} and functions of its own ({graph.functions[0]!r}), which ONNX's converter "
            "drops; run inline-functions first, or export it anew with a newer operator set"
        )
    data, arrays = graph.skeleton()
    model = onnx.ModelProto.FromString(data)
    try:
        made = version_converter.convert_version(model, version)
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{wanted} and cannot be converted ({reason}); export it anew with a newer operator set"
        ) from error
    if graph.opset < _COORDINATES_OPSET:
        _keep_coordinates(made.graph, _shrinking(graph))
    _log.info("operator set %d converted to %d", graph.opset, version)
    model.graph.CopyFrom(made.graph)
    del model.opset_import[:]
    model.opset_import.extend(made.opset_import)
    model.ir_version = max(model.ir_version, _IR_VERSIONS.get(version, 10))
    changed = Graph(model, arrays)
    normalise(changed)
    graph.adopt(changed)


def _shrinking(graph: Graph) -> set[str]:
    """What each Resize gives that is known to grow along no axis."""
    scales = {
        str(node.outputs[0].name): graph.constant(node.inputs[1].name)
        for node in graph.all_nodes()
        if is_op(node, "Resize")
    }
    return {
        name
        for name, array in scales.items()
        if array is not None and bool(np.all(array.astype(np.float64) <= 1))
    }


def _keep_coordinates(graph: onnx.GraphProto, shrinking: Collection[str]) -> None:
    """Let each Resize take the elements it took before, which the converter leaves to defaults.

    Coordinates were divided by the scale alone. The nearest element was the one below, but, as
    ONNX Runtime does it, the one above along an axis that shrinks.
    """
    for node in _nodes(graph):
        if node.op_type != "Resize" or node.domain not in ("", "ai.onnx"):
            continue
        nearest = "ceil" if node.output[0] in shrinking else "floor"
        for key, value in (("coordinate_transformation_mode", "asymmetric"),
                           ("nearest_mode", nearest)):  # fmt: skip
            node.attribute.append(onnx.helper.make_attribute(key, value))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
