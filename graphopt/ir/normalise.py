"""Undo the habits of exporters on load, so that results do not depend on who wrote the file.

- Constant nodes become initializers.
- Identity of a constant becomes a constant of its own: the TorchScript exporter merges
  byte-identical initializers that way, and cutting one layer's bias must not cut another's.
  A weight that several nodes read directly is tied on purpose and stays tied.
- ConstantOfShape with a known shape becomes a constant that occupies one element of memory, and
  is written back as ConstantOfShape where that is smaller (the light models of the onnx wheel).
- Shape arithmetic whose result is known becomes constants.
- A split into a sequence whose elements are picked becomes a Split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from graphopt.ir.convert import values_of
from graphopt.ir.edit import Edit
from graphopt.ir.reading import Array
from graphopt.ir.sequences import split_sequences
from graphopt.ir.values import Known, as_integers

if TYPE_CHECKING:
    from graphopt.ir.graph import Graph

__all__ = ["fold_integers", "integer_values", "is_uniform", "normalise", "uniform_node"]

_UNIFORM_BYTES = 4096
"""Uniform constants from this size on are written as ConstantOfShape."""


def normalise(graph: Graph) -> None:
    """Bring a freshly loaded graph into the form all passes expect."""
    _name_constants(graph)
    if split_sequences(graph):
        graph.reshape_notice()
    while fold_integers(graph) and (graph.functions or len(list(graph.scopes())) > 1):
        graph.reshape_notice()  # inference sees through bodies only with the whole model
    graph.prune()


def _name_constants(graph: Graph) -> None:
    """Turn nodes that are constants by another name into constants."""
    constants: dict[str, Array] = {}
    nodes = []
    for node in graph.all_nodes():
        inputs = [tensor.name for tensor in node.inputs]
        values = [constants.get(name, graph.constant(name)) for name in inputs]
        value = _constant_value(node, values)
        if value is not None and not graph.is_output(node.outputs[0].name):
            constants[node.outputs[0].name] = value
            nodes.append(node)
    graph.apply(Edit(remove=tuple(nodes), constants=constants))


def fold_integers(graph: Graph) -> bool:
    """Turn integer tensors of known value into constants; say whether there were any."""
    constants, nodes = {}, []
    for name, known in integer_values(graph).items():
        numbers, dtype, node = as_integers(known), graph.dtype(name), graph.producer(name)
        if numbers is None or dtype is None or node is None or len(node.outputs) != 1:
            continue
        if not graph.is_output(name):
            constants[name] = numbers.astype(dtype)
            nodes.append(node)
    if nodes:
        graph.apply(Edit(remove=tuple(nodes), constants=constants))
    return bool(nodes)


def _constant_value(node: gs.Node, inputs: Sequence[Array | None]) -> Array | None:
    """The value of a node that is a constant by another name."""
    if node.domain not in (None, "", "ai.onnx"):
        return None
    if node.op == "Constant":
        return _attribute_value(node)
    if node.op not in ("ConstantOfShape", "Identity") or inputs[0] is None:
        return None
    if node.op == "Identity":
        return inputs[0]
    return _uniform(node, tuple(int(dim) for dim in inputs[0]))


_CONSTANT_TYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": np.object_,
    "value_strings": np.object_,
}


def _attribute_value(node: gs.Node) -> Array | None:
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return values_of(value)
    for key, dtype in _CONSTANT_TYPES.items():
        if key in node.attrs and not isinstance(node.attrs[key], gs.Node.AttributeRef):
            return np.asarray(node.attrs[key], dtype)
    return None


def _uniform(node: gs.Node, shape: tuple[int, ...]) -> Array:
    given = node.attrs.get("value")
    fill = np.zeros(1, np.float32) if given is None else values_of(given)
    element = fill.reshape(-1)[:1].reshape((1,) * len(shape))
    if math.prod(shape) * element.itemsize > _UNIFORM_BYTES:
        return np.broadcast_to(element, shape) if shape else element.reshape(())
    return np.full(shape, element.reshape(-1)[0], element.dtype)


def integer_values(graph: Graph) -> dict[str, Known]:
    """Every computed tensor of whose integer value something is known, by name."""
    names = [node.outputs[0].name for node in graph.all_nodes() if node.outputs]
    found = ((name, graph.known(name)) for name in names if name)
    return {name: value for name, value in found if value is not None}


def is_uniform(array: Array) -> bool:
    """Whether an array is one element seen from everywhere (all strides zero) and large."""
    return array.nbytes > _UNIFORM_BYTES and not any(array.strides)


def uniform_node(name: str, array: Array) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    """A ConstantOfShape node that computes a uniform constant, and its shape initializer."""
    shape = numpy_helper.from_array(np.asarray(array.shape, np.int64), f"{name}.shape")
    value = numpy_helper.from_array(array.reshape(-1)[:1].copy(), "value")
    node = onnx.helper.make_node("ConstantOfShape", [shape.name], [name], value=value)
    return node, shape
