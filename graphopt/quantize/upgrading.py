"""Bring a graph to the operator set that knows an integer type or a layout of scales."""

from __future__ import annotations

import logging

import onnx
from onnx import version_converter

from graphopt.errors import ModelError
from graphopt.ir import Graph

__all__ = ["require_opset"]

_log = logging.getLogger(__name__)

_IR_VERSIONS = {13: 7, 19: 9, 21: 10}
"""The file format that came with an operator set and knows its types."""


def require_opset(graph: Graph, version: int, why: str) -> None:
    """Convert the graph if its operator set is older; `why` says what needs the newer one.

    Raises ModelError if ONNX's converter cannot.
    """
    if graph.opset >= version:
        return
    model = graph.to_model()
    try:
        made = version_converter.convert_version(model, version)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"quantize: {why} needs operator set {version}, the model has {graph.opset} and "
            f"cannot be converted ({reason}); export it anew with a newer operator set"
        ) from error
    made.ir_version = max(made.ir_version, _IR_VERSIONS.get(version, 10))
    _log.info("operator set %d converted to %d", graph.opset, version)
    graph.adopt(Graph.load(made))
