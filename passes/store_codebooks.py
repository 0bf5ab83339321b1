"""Store weights that share few values as codes and a codebook, inside the ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.ir.values import LIMIT
from graphopt.passbase import Context, Note, Pass, Promise
from graphopt.sparse import find_weights

__all__ = ["StoreCodebooks"]

_MOST_VALUES = 256
_FIRST = 1 << 12  # elements that mostly tell whether there are more values
_OPSET = 6  # the first in which Cast names its type by a number
_NODE_BYTES = 200  # of the two nodes and the codebook's header
_NAMES = 8  # times that the weight's name, or one made from it, comes on top


@dataclass(frozen=True)
class StoreCodebooks(Pass):
    """Store weights that share few values as codes of one byte and a codebook.

    The file gets up to four times smaller; outputs stay equal bit for bit. ONNX Runtime puts the
    weights together once, when it loads the model, unless its optimizations are switched off.
    Weights with more than 256 values, or too small to gain, stay. `fold-constants` would undo this,
    so it comes last; `graphopt pack` does better, if the file may be one of its own.
    """

    name: ClassVar[str] = "store-codebooks"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        if graph.opset < _OPSET:
            raise ModelError(
                f"{self.name}: codes need operator set {_OPSET}, the model has {graph.opset}; "
                "export it anew with a newer one"
            )
        stored, left_alone = dict[str, Note](), dict[str, str]()
        for name, weight in find_weights(graph)[0].items():
            found = _codes(weight, _NODE_BYTES + _NAMES * len(name))
            scopes = {id(graph.scope_of(node)) for node in graph.consumers(name)}
            if found is not None and len(scopes) > 1:
                left_alone[name] = "nodes of several bodies read it"
            elif found is not None:
                _store(graph, name, *found)
                stored[name] = len(found[0])
        context.notes["stored"] = stored
        context.left_alone(left_alone)


def _codes(weight: Array, more_bytes: int) -> tuple[Array, Array] | None:
    """Values and codes, None if with so many more bytes that is no smaller; told apart by bits.

    So few codes that they would be taken for shapes, and widened, when the file is read are none.
    """
    bits = np.ascontiguousarray(weight).view(f"u{weight.itemsize}")
    if len(np.unique(bits.reshape(-1)[:_FIRST])) > _MOST_VALUES:
        return None
    values = np.unique(bits)
    size = bits.size + values.nbytes + more_bytes
    if len(values) > _MOST_VALUES or size >= weight.nbytes or bits.size <= LIMIT:
        return None
    return values.view(weight.dtype), np.searchsorted(values, bits).astype(np.uint8)


def _store(graph: Graph, name: str, values: Array, codes: Array) -> None:
    """Replace a weight by nodes that compute it; what they give has the weight's name."""
    hidden, book = graph.fresh(f"{name}_codes"), graph.fresh(f"{name}_values")
    places = graph.fresh(f"{name}_places")
    readers = tuple({id(node): node for node in graph.consumers(name)}.values())
    graph.rename(name, hidden)
    nodes = [
        NewNode("Cast", (hidden,), (places,), {"to": int(TensorProto.INT32)}),
        NewNode("Gather", (book, places), (name,), {"axis": 0}),
    ]
    for node in readers:
        inputs = tuple(name if t.name == hidden else str(t.name) for t in node.inputs)
        outputs = tuple(str(tensor.name) for tensor in node.outputs)
        nodes.append(
            NewNode(node.op, inputs, outputs, dict(node.attrs), node.domain or "", node.name)
        )
    graph.apply(Edit(remove=readers, add=tuple(nodes), constants={hidden: codes, book: values}))
