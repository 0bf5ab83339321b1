"""The light models of the onnx wheel with weights drawn: they come with one value everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.backend.test

from graphopt.ir import Array, Graph

__all__ = ["draw_light_models"]


def draw_light_models(folder: Path, pattern: str = "*") -> list[Path]:
    """Write those of the nine networks that a pattern names to a folder; return their paths."""
    source = Path(onnx.backend.test.__file__).parent / "data" / "light"
    paths = []
    for seed, path in enumerate(sorted(source.glob(f"{pattern}.onnx"))):
        graph = Graph.load(path)
        _draw(graph, np.random.default_rng(seed))
        paths.append(folder / path.name)
        graph.save(paths[-1])
    return paths


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
