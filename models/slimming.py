"""Train a network, slim it, cut it and train it again: a table of test errors and widths.

python -m models.slimming slimming-mlp mnist --ratio 0.8 --allocation uniform
python -m models.slimming resnet-20 cifar10 --ratio 0.4 --epochs 40 --slim-epochs 40 --device cuda
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from graphopt import data as datasets
from graphopt.cost import cost
from graphopt.data import Dataset, input_specs
from graphopt.frontend import trace
from graphopt.ir import Graph
from graphopt.passbase import Context, Pass
from graphopt.runtime import Session
from models.networks import NETWORKS
from models.tasks import TASKS
from passes.recover import Recover
from passes.refit import Refit
from passes.remove_channels import RemoveChannels
from passes.slim import Slim

__all__ = ["main"]

_BATCH = 500
_SMALL = 1e-3
"""Scales below it are counted as faded: a layer before a BatchNorm does with small ones too."""


def error(graph: Graph, dataset: Dataset) -> float:
    """Percent of the rows whose class the model's first output does not name."""
    labels = dataset.labels
    assert labels is not None, "the tasks have labels"
    wrong = 0
    with Session.open(graph) as session:
        for rows, feeds in zip(dataset.rows(_BATCH), dataset.batches(_BATCH), strict=True):
            wrong += int((session.run(feeds)[0].argmax(axis=1) != labels[rows]).sum())
    return 100 * wrong / len(dataset)


def trained(given: argparse.Namespace, seed: int) -> Graph:
    """The reference network, trained from scratch by its task's schedule, as a graph."""
    reference, task = NETWORKS[given.network], TASKS[given.task]
    torch.manual_seed(seed)
    network = reference.build()
    schedule = replace(task.schedule, epochs=given.epochs or task.schedule.epochs)
    replace(task, schedule=schedule).train(network, seed=seed, device=given.device)
    network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return trace(network, torch.zeros(2, *reference.shape), input_names=["image"])


def widths(graph: Graph) -> str:
    """Outputs of the layers, in order."""
    sizes = []
    for node in graph.nodes:
        shape = graph.shape(node.outputs[0].name) if node.op in ("Conv", "Gemm", "MatMul") else None
        if shape is not None:
            sizes.append(str(shape[1]))
    return "-".join(sizes)


def small_scales(graph: Graph) -> float:
    """The part of all BatchNorm scales that has all but faded."""
    norms = [node for node in graph.nodes if node.op == "BatchNormalization"]
    scales = [graph.constant(node.inputs[1].name) for node in norms]
    found = np.concatenate([np.abs(s.astype(np.float64)) for s in scales if s is not None])
    return float((found < _SMALL).mean())


def rows(given: argparse.Namespace, seed: int) -> Iterator[tuple[str, Graph, float]]:
    """What was done, the graph after it, and the seconds it took."""
    began = time.perf_counter()
    graph = trained(given, seed)
    specs, task = input_specs(graph), TASKS[given.task]
    calibration = datasets.open(task.name, specs, split="train")
    context = Context(
        original=graph.clone(), calibration=calibration, seed=seed, threads=given.threads,
        device=given.device,
    )  # fmt: skip
    augment = ("crop",) * bool(task.schedule.shift) + ("flip",) * task.schedule.mirror
    steps: dict[str, Pass] = {
        "slimmed": Slim(
            epochs=given.slim_epochs, rate=given.slim_rate, l1=given.l1, augment=augment,
            batch=given.batch, weight_decay=given.weight_decay, learn=given.learn,
        ),
        "cut": RemoveChannels(
            ratio=given.ratio, importance="batch-norm-scale", allocation=given.allocation, align=1,
        ),
        **({"refitted": Refit(samples=given.refit)} if given.refit else {}),
        "fine-tuned": Recover(
            epochs=given.tune_epochs, rate=given.tune_rate, augment=augment, holdout=0.0,
            batch=given.batch, weight_decay=given.weight_decay, learn=given.learn,
        ),
    }  # fmt: skip
    yield "baseline", graph, time.perf_counter() - began
    for name, step in steps.items():
        began = time.perf_counter()
        step.run(graph, context)
        yield name, graph, time.perf_counter() - began


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--epochs", type=int, help="of the baseline; default: the task's")
    parser.add_argument("--slim-epochs", type=float, default=10.0)
    parser.add_argument("--slim-rate", type=float, default=0.05)
    parser.add_argument("--l1", type=float, default=1e-3)
    parser.add_argument("--tune-epochs", type=float, default=10.0)
    parser.add_argument("--tune-rate", type=float, default=0.05)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--allocation", choices=["uniform", "global"], default="global")
    parser.add_argument("--refit", type=int, metavar="ROWS", help="solve the cut's layers anew")
    parser.add_argument("--learn", choices=["labels", "original"], default="labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{given.network} on {given.task}, {vars(given)}")
    print(f"{'':11} seed  test error  parameters         MACs  faded  seconds  widths")
    for seed in given.seeds:
        test: Dataset | None = None
        for name, graph, seconds in rows(given, seed):
            if test is None:
                test = datasets.open(TASKS[given.task].name, input_specs(graph), split="test")
            size = cost(graph)
            print(
                f"{name:11} {seed:4}  {error(graph, test):8.2f} %  {size.parameters:10,}  "
                f"{size.macs:11,}  {small_scales(graph):5.2f}  {seconds:7.0f}  {widths(graph)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
