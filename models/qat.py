"""Train a quantized network for so many minutes or epochs; print top-1 before and after.

    python -m models.qat MODEL.onnx [--weights 4] [--activations 4] [--epochs 20] [--preprocess P]

Trains on CIFAR-10's training part without its labels, measures on its test part, both read from
$GRAPHOPT_DATA. Four bits in activations and weights but for the first and the last layer.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import graphopt as go
from graphopt.data import Dataset, InputSpec
from graphopt.data import open as open_data
from graphopt.ir import Graph
from graphopt.runtime import Session

__all__ = ["top1"]

_BATCH = 100


def _inputs(graph: Graph) -> list[InputSpec]:
    return [
        InputSpec(name, graph.shape(name), graph.dtype(name) or np.dtype(np.float32))
        for name in graph.inputs
    ]


def top1(graph: Graph, dataset: Dataset) -> float:
    """Per cent of rows whose label has the largest score."""
    labels = dataset.labels
    assert labels is not None, "CIFAR-10 has labels"
    with Session.open(graph) as session:
        made = [session.run(feeds)[0].argmax(1) for feeds in dataset.batches(_BATCH)]
    return float(np.mean(np.concatenate(made) == labels)) * 100


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a quantized network.")
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--weights", type=int, default=4, choices=(4, 8))
    parser.add_argument("--activations", type=int, default=4, choices=(4, 8))
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--preprocess", default="cifar10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    graph = go.load(options.model)
    test, rows = (
        open_data(f"cifar10:{part}[:{count}]", _inputs(graph), preprocess=options.preprocess)
        for part, count in (("test", options.test_rows), ("train", options.rows))
    )
    print(f"float: top-1 {top1(graph, test):.2f}")
    training = {
        "weight_bits": options.weights, "activation_bits": options.activations,
        "epochs": options.epochs, "minutes": options.minutes, "rate": options.rate,
        "batch": options.batch,
    }  # fmt: skip
    began = time.perf_counter()
    passes: list[object] = [{"quantize-static": {"pays": False}}]
    if options.weights < 8:
        passes.append({"adaround": {"bits": options.weights, "end_bits": 8, "steps": 0}})
    steps = ["lossless", [*passes, {"train-quantized": training}]]
    manager = go.PassManager(steps)
    result = manager.run(
        graph, data=rows, seed=options.seed, device=options.device, max_drop=1.0, measure=False
    )
    print(f"w{options.weights}a{options.activations}: top-1 {top1(result.graph, test):.2f} "
          f"after {time.perf_counter() - began:.0f} s")  # fmt: skip
    if options.output is not None:
        result.graph.save(options.output)


if __name__ == "__main__":
    main()
