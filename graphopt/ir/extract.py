"""Cut out the part of a graph that computes some tensors from others, or from constants alone."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from graphopt.ir.convert import Exporter, declaration
from graphopt.ir.graph import Graph
from graphopt.ir.reading import INLINE_BYTES, Array
from graphopt.ir.shapes import TensorInfo
from graphopt.ir.writing import skeleton_tensor

__all__ = ["constant_part", "part"]


def constant_part(graph: Graph, outputs: Sequence[str]) -> Graph:
    """A graph of its own, without inputs, that computes `outputs`; large constants are shared."""
    return part(graph, (), outputs)


def part(
    graph: Graph, inputs: Sequence[str], outputs: Sequence[str], weights: Sequence[str] = ()
) -> Graph:
    """A graph of its own that computes `outputs` from `inputs`; large constants are shared.

    It has the `weights` for inputs too, behind the others; of these alone the sizes stay known.
    Every input's type must be known; functions and bodies are not carried over. Initializers that
    a caller might override have their own values, unless they are among the inputs.
    """
    exporter, waiting = Exporter(graph.domains, {}, {}), list(outputs)
    nodes: dict[int, onnx.NodeProto] = {}
    arrays: dict[str, Array] = {}
    while waiting:
        name = waiting.pop()
        if name in inputs or name in weights:
            continue
        maker, value = graph.producer(name), graph.constant(name)
        if value is None:
            value = graph.default(name)
        if value is not None:
            arrays[name] = value
        elif maker is not None and id(maker) not in nodes:
            nodes[id(maker)] = proto = exporter.node(maker)
            for place, made in enumerate(proto.output):
                if made in inputs or made in weights:  # beside another output that is needed
                    proto.output[place] = graph.fresh(made)
            waiting.extend(tensor.name for tensor in maker.inputs if tensor.name)
    tensors = [skeleton_tensor(name, array, INLINE_BYTES) for name, array in arrays.items()]
    body = helper.make_graph(
        list(nodes.values()),
        "part",
        [
            *(declaration(name, _open(graph, name)) for name in inputs),
            *(
                declaration(name, TensorInfo(graph.dtype(name), graph.shape(name)))
                for name in weights
            ),
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        tensors,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in graph.domains.items()]
    model = helper.make_model(
        body,
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports, ignore_unknown=True),
    )
    return Graph(model, arrays)


def _open(graph: Graph, name: str) -> TensorInfo:
    """The type of a tensor with every size left open."""
    shape = graph.shape(name)
    return TensorInfo(graph.dtype(name), None if shape is None else (None,) * len(shape))
