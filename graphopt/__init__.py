"""graphopt: a smaller, faster model, with every step checked and every gain measured.

    import graphopt as go
    graph = go.load("model.onnx")
    result = go.PassManager("lossless").run(graph)
    result.graph.save("small.onnx")

Names are imported when they are first used, so that `import graphopt` loads neither torch nor
onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt import data
    from graphopt.errors import (
        BudgetError,
        DataError,
        EditError,
        GraphoptError,
        ModelError,
        RecipeError,
        RuntimeUnavailable,
        TargetError,
        UnsupportedOp,
    )
    from graphopt.frontend import trace
    from graphopt.ir import Edit, Graph, NewNode
    from graphopt.lens import trainable
    from graphopt.manager import PassManager, Report, Request, Result
    from graphopt.packed import pack, unpack
    from graphopt.passbase import Context, Need, Pass, Promise
    from graphopt.runtime import bench, compare

    load = Graph.load

__all__ = [
    "BudgetError",
    "Context",
    "DataError",
    "Edit",
    "EditError",
    "Graph",
    "GraphoptError",
    "ModelError",
    "Need",
    "NewNode",
    "Pass",
    "PassManager",
    "Promise",
    "RecipeError",
    "Report",
    "Request",
    "Result",
    "RuntimeUnavailable",
    "TargetError",
    "UnsupportedOp",
    "bench",
    "compare",
    "data",
    "load",
    "pack",
    "trace",
    "trainable",
    "unpack",
]

_HOMES = {
    "Context": "graphopt.passbase",
    "Edit": "graphopt.ir",
    "Graph": "graphopt.ir",
    "Need": "graphopt.passbase",
    "NewNode": "graphopt.ir",
    "Pass": "graphopt.passbase",
    "PassManager": "graphopt.manager",
    "Promise": "graphopt.passbase",
    "Report": "graphopt.manager",
    "Request": "graphopt.manager",
    "Result": "graphopt.manager",
    "bench": "graphopt.runtime",
    "compare": "graphopt.runtime",
    "pack": "graphopt.packed",
    "trace": "graphopt.frontend",
    "trainable": "graphopt.lens",
    "unpack": "graphopt.packed",
}


def __getattr__(name: str) -> object:
    if name == "load":
        return importlib.import_module("graphopt.ir").Graph.load
    if name == "data":
        return importlib.import_module("graphopt.data")
    if name in __all__:
        home = importlib.import_module(_HOMES.get(name, "graphopt.errors"))
        return getattr(home, name)
    raise AttributeError(f"module 'graphopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
