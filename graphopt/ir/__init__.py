"""The graph: one onnx-graphsurgeon graph, loaded and saved without loss."""

from __future__ import annotations

from graphopt.ir.edit import Edit, NewNode
from graphopt.ir.graph import Graph, Source
from graphopt.ir.normalise import integer_values
from graphopt.ir.reading import Array
from graphopt.ir.scopes import bodies
from graphopt.ir.shapes import Dims, TensorInfo
from graphopt.ir.values import Known, as_integers

__all__ = [
    "Array",
    "Dims",
    "Edit",
    "Graph",
    "Known",
    "NewNode",
    "Source",
    "TensorInfo",
    "as_integers",
    "bodies",
    "integer_values",
]
