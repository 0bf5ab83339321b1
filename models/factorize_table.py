"""Print what low-rank factorization keeps of a classifier's accuracy and of its time.

python -m models.factorize_table MODEL.onnx --calibration 'cifar10:train[:1024]' --test cifar10:test

Rows are methods and rules for the ranks; columns are factorization from the weights alone, from
activations, and from activations with the layers solved anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from graphopt import data as datasets
from graphopt.cost import cost
from graphopt.data import Dataset, input_specs
from graphopt.errors import GraphoptError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.runtime import Session, bench
from passes.factorize import Factorize
from passes.fold_batch_norm import FoldBatchNorm

__all__ = ["main"]

METHODS: Mapping[str, tuple[str, ...]] = {
    "svd + channel": ("svd", "channel"),
    "svd + spatial": ("svd", "spatial"),
    "svd + tucker": ("svd", "tucker"),
    "svd + cp": ("svd", "cp"),
    "all but cp": ("svd", "channel", "spatial", "tucker"),
}
RULES: Mapping[str, Mapping[str, float]] = {
    "macs": {"macs": 0.4},
    "ratio": {"ratio": 0.4},
    "energy": {"energy": 0.95},
    "evbmf": {"evbmf": 1.0},
    "latency": {"latency": 0.55},
}


_BATCH = 250


def top1(graph: Graph, dataset: Dataset) -> float:
    """Percent of the data set whose class the model's first output names."""
    labels = dataset.labels
    assert labels is not None, "the test data have labels"
    with Session.open(graph) as session:
        found = [session.run(feeds)[0].argmax(axis=1) for feeds in dataset.batches(_BATCH)]
    return 100 * float(np.mean(np.concatenate(found) == labels))


def variants(step: Factorize, calibration: Dataset) -> Iterator[tuple[Factorize, Dataset | None]]:
    """Without data, with data, and with a refit."""
    yield step, None
    yield replace(step, refit=False), calibration
    yield step, calibration


def measured(
    original: Graph, step: Factorize, calibration: Dataset | None, test: Dataset, accuracy: float
) -> str:
    """MACs left, points lost and the ratio of times."""
    graph = original.clone()
    try:
        step.run(graph, Context(original=original, calibration=calibration))
    except GraphoptError as error:
        return str(error)[:28]
    feeds = next(iter(test.batches(1)))
    timing = bench(original, graph, feeds={name: np.asarray(feeds[name]) for name in feeds})
    assert timing.ratio is not None, "two models were timed"
    left = cost(graph).macs / cost(original).macs
    return f"{left:.3f}  {accuracy - top1(graph, test):6.2f}  {timing.ratio:.3f}"


def rows(given: argparse.Namespace) -> Iterator[tuple[str, Factorize]]:
    """The names and the steps of all rows."""
    for methods in given.methods:
        for rule in given.rules:
            step = Factorize(
                methods=METHODS[methods],
                goal=given.goal,
                samples=given.samples,
                **{**RULES[rule], **({rule: given.budget} if given.budget else {})},
            )
            yield f"{methods:14} {rule:8}", step


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="cifar10:train[:1024]")
    parser.add_argument("--test", default="cifar10:test")
    parser.add_argument("--preprocess", default="imagenet")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rules", nargs="*", default=["macs", "ratio"], choices=list(RULES))
    parser.add_argument("--budget", type=float, help="instead of the rules' own values")
    parser.add_argument("--goal", default="latency", choices=["latency", "size", "macs"])
    given = parser.parse_args(arguments)
    original = Graph.load(given.model)
    FoldBatchNorm().run(original, Context(original=original))
    specs = input_specs(original)
    calibration = datasets.open(given.calibration, preprocess=given.preprocess, seed=0).bind(specs)
    test = datasets.open(given.test, preprocess=given.preprocess, seed=0).bind(specs)
    accuracy = top1(original, test)
    print(f"{given.model}: {accuracy:.2f} % before")
    print("columns: part of the MACs left, points lost, ratio of the times")
    print(f"{'methods':14} {'ranks':8} {'weights alone':24} {'activations':24} refitted")
    for name, step in rows(given):
        columns = [
            measured(original, variant, inputs, test, accuracy)
            for variant, inputs in variants(step, calibration)
        ]
        print(f"{name} " + " ".join(f"{column:24}" for column in columns), flush=True)


if __name__ == "__main__":
    main()
