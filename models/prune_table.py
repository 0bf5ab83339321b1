"""Print what criteria of importance keep of a classifier's accuracy, with and without a refit.

python -m models.prune_table MODEL.onnx --calibration 'cifar10:train[:1024]' --test cifar10:test
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from graphopt import data as datasets
from graphopt.cost import cost
from graphopt.data import Dataset
from graphopt.errors import GraphoptError
from graphopt.ir import Graph
from graphopt.manager.judge import input_specs
from graphopt.passbase import Context, Pass
from graphopt.runtime import Session
from passes.fold_batch_norm import FoldBatchNorm
from passes.refit import Refit
from passes.remove_and_refit import RemoveAndRefit
from passes.remove_channels import RemoveChannels

__all__ = ["main"]

CRITERIA = (
    "random",
    "l1",
    "l2",
    "geometric-median",
    "apoz",
    "mean-activation",
    "activation-variance",
    "hessian-diagonal",
    "reconstruction",
    "reconstruction-forward",
    "lasso",
    "taylor",
    "taylor-weight",
)
SEEDED = ("random",)
_BATCH = 250


def top1(graph: Graph, dataset: Dataset) -> float:
    """Percent of the data set whose class the model's first output names."""
    labels = dataset.labels
    assert labels is not None, "the test data have labels"
    hits = 0
    with Session.open(graph) as session:
        for rows, feeds in zip(dataset.rows(_BATCH), dataset.batches(_BATCH), strict=True):
            hits += int((session.run(feeds)[0].argmax(axis=1) == labels[rows]).sum())
    return 100 * hits / len(dataset)


def after(original: Graph, steps: Sequence[Pass], calibration: Dataset, seed: int) -> Graph:
    """What passes make of a model."""
    graph = original.clone()
    for step in steps:
        step.run(graph, Context(original=original, calibration=calibration, seed=seed))
    return graph


def rows(
    original: Graph, calibration: Dataset, test: Dataset, macs: float, criteria: Sequence[str]
) -> Iterator[tuple[str, int, str, str]]:
    """Criterion, seed, and the result without and with a refit."""
    for name in criteria:
        for seed in (0, 1, 2) if name in SEEDED else (0,):
            cut = RemoveChannels(macs=macs, importance=name, samples=len(calibration))
            try:
                plain = _result(original, after(original, [cut], calibration, seed), test)
                steps = [cut, Refit(samples=len(calibration))]
                fitted = _result(original, after(original, steps, calibration, seed), test)
            except GraphoptError as error:
                plain, fitted = "-", str(error)
            yield name, seed, plain, fitted
    step = RemoveAndRefit(macs=macs, samples=len(calibration))
    found = _result(original, after(original, [step], calibration, 0), test)
    yield step.name, 0, "-", found


def _result(original: Graph, graph: Graph, test: Dataset) -> str:
    return f"{top1(graph, test):6.2f} % ({cost(graph).macs / cost(original).macs:.3f} of MACs)"


def main() -> None:
    """Read the arguments and print one table for each budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="cifar10:train[:1024]")
    parser.add_argument("--test", default="cifar10:test")
    parser.add_argument("--preprocess", default="imagenet")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.75, 0.5, 0.35])
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA))
    given = parser.parse_args()
    original = Graph.load(given.model)
    FoldBatchNorm().run(original, Context(original=original))
    specs = input_specs(original)
    calibration = datasets.open(given.calibration, preprocess=given.preprocess, seed=0).bind(specs)
    test = datasets.open(given.test, preprocess=given.preprocess, seed=0).bind(specs)
    print(f"{given.model}: {top1(original, test):.2f} % before", flush=True)
    for macs in given.macs:
        print(f"\n{macs:g} of the MACs\n{'criterion':24} seed  {'cut':30} cut and refitted")
        for name, seed, plain, fitted in rows(original, calibration, test, macs, given.criteria):
            print(f"{name:24} {seed:4}  {plain:30} {fitted}", flush=True)


if __name__ == "__main__":
    main()
