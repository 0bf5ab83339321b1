"""Fuse MatMul, Add and Transpose into Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.islands import order_of
from graphopt.rewrite.matching import data_source, operands, private_source, sharing

__all__ = ["FuseGemm"]


@dataclass(frozen=True)
class FuseGemm(Pass):
    """Fuse the product of two matrices and what surrounds it into Gemm.

    MatMul(A, B) + bias becomes Gemm(A, B, bias), for a constant bias per column. A Transpose of
    either matrix becomes an attribute. Products of more dimensions stay, for Gemm has two; so do
    integers, for ONNX Runtime multiplies only floats with Gemm.
    """

    name: ClassVar[str] = "fuse-gemm"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = {"Add": (bias,), "Gemm": (transposed,), "MatMul": (transposed,)}
        context.record(rewrite(graph, rules))


def bias(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace MatMul(A, B) + c, or a Gemm without a bias and + c, by Gemm(A, B, c)."""
    pair, product = operands(graph, node), data_source(graph, node, "Gemm", "MatMul")
    if pair is None or product is None or not _are_matrices(graph, product):
        return None
    if any(tensor.name for tensor in product.inputs[2:]):
        return None
    if reason := sharing(graph, product):
        return Refusal("bias", node.name, reason)
    columns = graph.shape(product.outputs[0].name)
    size = pair.constant.size
    if pair.constant.ndim > 2 or columns is None or size not in (1, columns[1]):
        return Refusal("bias", node.name, f"{pair.constant.shape} is not one number per column")
    if pair.constant.shape[-1:] not in ((), (size,)):
        return Refusal("bias", node.name, "the constant runs along the rows")
    left, right = (tensor.name for tensor in product.inputs[:2])
    constant = node.inputs[1 if pair.first else 0].name
    outputs = (node.outputs[0].name,)
    attrs = {key: value for key, value in product.attrs.items() if key != "beta"}
    new = NewNode("Gemm", (left, right, constant), outputs, attrs, name=product.name)
    return Edit(remove=(product, node), add=(new,))


def transposed(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace a Transpose before Gemm, or before a MatMul of matrices, by an attribute."""
    if not _are_matrices(graph, node) or (node.op == "MatMul" and graph.opset < 11):
        return None
    inputs, gone = [tensor.name for tensor in node.inputs], [node]
    attrs = dict(node.attrs)
    for index, key in enumerate(("transA", "transB")):
        maker = private_source(graph, node, index, "Transpose")
        if maker is not None and order_of(graph, maker) == (1, 0):
            inputs[index] = maker.inputs[0].name
            attrs[key] = 1 - int(attrs.get(key, 0))
            gone.append(maker)
    if len(gone) == 1:
        return None
    kept = {key: value for key, value in attrs.items() if value or not key.startswith("trans")}
    outputs = (node.outputs[0].name,)
    new = NewNode("Gemm", tuple(inputs), outputs, kept, name=node.name)
    return Edit(remove=tuple(gone), add=(new,))


def _are_matrices(graph: Graph, node: gs.Node) -> bool:
    """Whether a product is of two float matrices."""
    names = [tensor.name for tensor in node.inputs[:2]]
    shapes = [graph.shape(name) for name in names]
    matrices = all(shape is not None and len(shape) == 2 for shape in shapes)
    return matrices and graph.is_float(names[0])
