"""Replace calls of model-local functions by what the functions do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx.inliner

from graphopt.ir import Graph
from graphopt.ir.normalise import normalise
from graphopt.passbase import Context, Pass, Promise

__all__ = ["InlineFunctions"]

_COPIED_BYTES = 64 * 1024
"""Constants inside a function up to this size may be written once per call."""


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Inline model-local functions, as ONNX Runtime does when it loads a model.

    No pass looks inside a function, so all are inlined, however long and however often called:
    nodes cost little. What costs is a constant inside a function that is called several times;
    a function that holds more than 64 KiB of constants and is called more than once stays.
    """

    name: ClassVar[str] = "inline-functions"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        if not graph.functions:
            return
        data, arrays = graph.skeleton()
        model = onnx.ModelProto.FromString(data)
        kept = _heavy(model)
        if len(kept) == len(model.functions):
            return
        inlined = onnx.inliner.inline_selected_functions(model, kept, exclude=True)
        changed = Graph(inlined, arrays)
        normalise(changed)
        graph.adopt(changed)


def _heavy(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Functions whose constants would be copied."""
    calls = Counter(_calls(model.graph))
    for function in model.functions:
        calls.update(_calls(function))
    return [
        (function.domain, function.name)
        for function in model.functions
        if calls[function.domain, function.name] > 1 and _constant_bytes(function) > _COPIED_BYTES
    ]


def _calls(scope: onnx.GraphProto | onnx.FunctionProto) -> Iterator[tuple[str, str]]:
    """Every node's domain and operator, those in bodies included."""
    for node in scope.node:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _calls(attribute.g)


def _constant_bytes(function: onnx.FunctionProto) -> int:
    constants = (node for node in function.node if node.op_type == "Constant")
    return sum(entry.t.ByteSize() for node in constants for entry in node.attribute)
