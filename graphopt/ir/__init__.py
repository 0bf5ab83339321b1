"""The graph: one onnx-graphsurgeon graph, loaded and saved without loss."""

from __future__ import annotations

from graphopt.ir.edit import Edit, NewNode, remade
from graphopt.ir.extract import constant_part, part
from graphopt.ir.graph import Graph
from graphopt.ir.normalise import fold_integers, integer_values, is_uniform
from graphopt.ir.reading import Array
from graphopt.ir.scopes import bodies
from graphopt.ir.shapes import Dims, TensorInfo
from graphopt.ir.source import Source
from graphopt.ir.structure import rename_values
from graphopt.ir.values import Known, as_integers, known_array

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
    "constant_part",
    "fold_integers",
    "integer_values",
    "is_uniform",
    "known_array",
    "part",
    "remade",
    "rename_values",
]
