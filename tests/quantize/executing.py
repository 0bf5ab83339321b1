"""Quantize small models in tests, and see what ONNX Runtime executes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from graphopt.data import Dataset, input_specs
from graphopt.ir import Graph
from graphopt.passbase import Context
from passes.quantize_static import QuantizeStatic
from tests.asserting import parse, random_inputs

__all__ = ["calibration", "decibels", "executed", "quantized", "run_optimized"]

Floats = npt.NDArray[np.float32]


def calibration(graph: Graph, *, rows: int = 16, seed: int = 0) -> Dataset:
    """Normal inputs for a model; its unknown sizes become 2."""
    feeds = random_inputs(graph.to_model(), seed, rows)
    return Dataset.from_arrays(feeds).bind(input_specs(graph))


def quantized(source: str | onnx.ModelProto, **options: object) -> tuple[Graph, Graph]:
    """A model in floats, and what the pass makes of it."""
    model = parse(source) if isinstance(source, str) else source
    graph = Graph.load(model)
    result = graph.clone()
    step = QuantizeStatic(**{"settled": None, "pays": False, "least_db": None, **options})  # type: ignore[arg-type]
    step.run(result, Context(original=graph, calibration=calibration(graph)))
    result.verify()
    return graph, result


def executed(graph: Graph, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs after all its optimization."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(graph.to_bytes(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(folder / "optimized.onnx")
    return Counter(node.op_type for node in model.graph.node)


def run_optimized(graph: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs as a user of ONNX Runtime gets them: on integers where there are kernels."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.to_bytes(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


def decibels(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal over error."""
    error = float(((wanted.astype(np.float64) - found) ** 2).sum())
    return 10 * float(
        np.log10(max(float((wanted.astype(np.float64) ** 2).sum()), 1e-30) / max(error, 1e-30))
    )
