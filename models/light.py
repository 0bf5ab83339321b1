"""The light models of the onnx wheel with weights drawn: they come with one value everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.backend.test

from graphopt.ir import Array, Graph

__all__ = ["LIGHT", "draw_light_model"]

_FOLDER = Path(onnx.backend.test.__file__).parent / "data" / "light"

LIGHT = tuple(sorted(path.name for path in _FOLDER.glob("*.onnx")))
"""The files of the networks."""


def draw_light_model(name: str, folder: Path) -> Path:
    """Write one of the networks to a folder; return its path."""
    graph = Graph.load(_FOLDER / name)
    _draw(graph, np.random.default_rng(LIGHT.index(name)))
    graph.save(folder / name)
    return folder / name


def _draw(graph: Graph, rng: np.random.Generator) -> None:
    for name, array in graph.constants().items():
        if array.dtype == np.float32 and array.size > 1:
            graph.set_constant(name, _drawn(array, rng, positive=_scales(graph, name)))


def _scales(graph: Graph, name: str) -> bool:
    """Whether channels are multiplied by a constant, or divided by it."""
    for node in graph.consumers(name):
        if node.op in ("Unsqueeze", "Reshape"):
            return _scales(graph, node.outputs[0].name)
        if node.op == "Mul":
            return True
        if node.op == "BatchNormalization" and name in (node.inputs[1].name, node.inputs[4].name):
            return True
    return False


def _drawn(array: Array, rng: np.random.Generator, *, positive: bool) -> Array:
    if positive:
        return rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
    if array.ndim == 1:
        return rng.normal(0, 0.1, array.shape).astype(np.float32)
    spread = np.sqrt(2 / (array.size / array.shape[0]))
    return (rng.standard_normal(array.shape, np.float32) * np.float32(spread)).astype(np.float32)
