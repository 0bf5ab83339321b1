"""Carry a model between protobuf and graphsurgeon without losing what graphsurgeon drops.

Graphsurgeon imports; exporting is done here, because its exporter copies outer constants into
every body that reads them, guesses the type of empty attribute lists and mutates shared tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from graphopt.errors import ModelError
from graphopt.ir.reading import Array
from graphopt.ir.shapes import TensorInfo

__all__ = [
    "Exporter",
    "attribute_type",
    "copy_scope",
    "declaration",
    "declared",
    "import_scope",
    "values_of",
]

G_LOGGER.severity = G_LOGGER.CRITICAL


def declared(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.ValueInfoProto]]:
    """Declared inputs and outputs of every scope, as they were written."""
    for info in (*graph.input, *graph.output):
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(info)
        yield info.name, copy
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from declared(attribute.g)


def import_scope(model: onnx.ModelProto) -> gs.Graph:
    """Import the main graph; functions and large constants stay with the caller."""
    bare = onnx.ModelProto()
    bare.graph.CopyFrom(model.graph)
    bare.opset_import.extend(model.opset_import)
    bare.ir_version = model.ir_version
    try:
        return gs.import_onnx(bare)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the model: cannot be represented ({error}); left alone") from error


def values_of(constant: gs.Constant) -> Array:
    """A constant's array; it is read once and then shared."""
    lazy = constant._values
    if isinstance(lazy, LazyValues):
        if isinstance(lazy.tensor, onnx.SparseTensorProto):
            constant.values = _dense(lazy.tensor)
        else:
            constant.values = numpy_helper.to_array(lazy.tensor)
    array: Array = constant._values
    return array


def declaration(name: str, known: TensorInfo) -> onnx.ValueInfoProto:
    """Declare a tensor as far as its type is known."""
    if known.dtype is None:
        return onnx.ValueInfoProto(name=name)
    kind = helper.np_dtype_to_tensor_dtype(known.dtype)
    return helper.make_tensor_value_info(name, kind, known.shape)


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    elements = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), elements.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), array.shape)
    array.reshape(-1)[flat] = elements
    return array


@lru_cache(maxsize=4096)
def attribute_type(op: str, domain: str, opset: int, key: str) -> int | None:
    """The declared AttributeProto type of an operator's attribute, None if it has none."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None
    declared = schema.attributes.get(key)
    return None if declared is None else int(declared.type)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Exporter:
    """Writes scopes back as protobuf.

    `infos` are the declared inputs and outputs of every scope, `constants` the constants that
    each scope (its id) holds.
    """

    domains: Mapping[str, int]
    infos: Mapping[str, onnx.ValueInfoProto]
    constants: Mapping[int, Sequence[gs.Constant]]

    def scope(
        self,
        scope: gs.Graph,
        first: Iterable[onnx.NodeProto],
        initializers: Iterable[onnx.TensorProto],
    ) -> onnx.GraphProto:
        """Write a scope; nodes in `first` go before its own."""
        graph = onnx.GraphProto(name=scope.name or "graph")
        graph.node.extend(first)
        graph.node.extend(self.node(node) for node in scope.nodes)
        graph.initializer.extend(initializers)
        graph.input.extend(self._info(tensor) for tensor in scope.inputs)
        graph.output.extend(self._info(tensor) for tensor in scope.outputs)
        return graph

    def node(self, node: gs.Node) -> onnx.NodeProto:
        proto = onnx.NodeProto(
            op_type=node.op,
            name=node.name,
            input=[tensor.name for tensor in node.inputs],
            output=[tensor.name for tensor in node.outputs],
            domain=node.domain or "",
        )
        domain = "" if node.domain in (None, "ai.onnx") else node.domain
        opset = self.domains.get(domain, 1)
        proto.attribute.extend(
            self._attribute(key, value, attribute_type(node.op, domain, opset, key))
            for key, value in node.attrs.items()
        )
        return proto

    def _info(self, tensor: gs.Tensor) -> onnx.ValueInfoProto:
        return self.infos.get(tensor.name) or onnx.ValueInfoProto(name=tensor.name)

    def _attribute(self, key: str, value: object, declared: int | None) -> onnx.AttributeProto:
        if isinstance(value, gs.Graph):
            tensors = (
                numpy_helper.from_array(values_of(constant), constant.name)
                for constant in self.constants.get(id(value), ())
            )
            return helper.make_attribute(key, self.scope(value, (), tensors))
        if isinstance(value, gs.Tensor):
            value = numpy_helper.from_array(values_of(value), value.name)
        elif isinstance(value, np.ndarray) and declared == onnx.AttributeProto.TENSOR:
            value = numpy_helper.from_array(value)
        elif isinstance(value, type | np.dtype):
            value = int(helper.np_dtype_to_tensor_dtype(np.dtype(value)))
        if isinstance(value, list | tuple) and not value and declared is None:
            declared = onnx.AttributeProto.INTS
        return helper.make_attribute(key, value, attr_type=declared)


def copy_scope(scope: gs.Graph, tensors: dict[str, gs.Tensor]) -> gs.Graph:
    """Copy a scope and its bodies; weights are shared, `tensors` collects the copies by name."""

    def copied(tensor: gs.Tensor) -> gs.Tensor:
        if not tensor.name:
            return gs.Variable.empty()
        if tensor.name not in tensors:
            if isinstance(tensor, gs.Constant):
                tensors[tensor.name] = gs.Constant(tensor.name, tensor._values)
            else:
                tensors[tensor.name] = gs.Variable(
                    tensor.name, tensor.dtype, tensor.shape, tensor.type
                )
        return tensors[tensor.name]

    inputs = [copied(tensor) for tensor in scope.inputs]
    nodes = [
        gs.Node(
            node.op,
            node.name,
            {
                key: copy_scope(value, tensors) if isinstance(value, gs.Graph) else value
                for key, value in node.attrs.items()
            },
            [copied(tensor) for tensor in node.inputs],
            [copied(tensor) for tensor in node.outputs],
            node.domain,
        )
        for node in scope.nodes
    ]
    return gs.Graph(
        nodes=nodes,
        inputs=inputs,
        outputs=[copied(tensor) for tensor in scope.outputs],
        name=scope.name,
        doc_string=scope.doc_string,
        opset=scope.opset,
    )
