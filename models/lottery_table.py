"""Print how a pruned and rewound network trains beside all of it, and redrawn; see `--help`.

Each row is one seed: LeNet-300-100 as it was drawn, trained whole; the part that `prune-weights`
leaves of it, rewound to what was drawn and trained alike (Frankle & Carbin 2019); and the same
places filled with newly drawn weights, trained alike. Errors are of test images.
"""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Literal

import click
import numpy as np
import torch
from torch import nn

from graphopt import data
from graphopt.data import Dataset, input_specs
from graphopt.ir import Graph
from graphopt.passbase import Context, Pass
from graphopt.sparse import find_weights, keep_weights
from graphopt.train import Plan
from models.compression_table import measured
from models.networks import NETWORKS
from models.train import export
from passes.finetune import Finetune
from passes.prune_weights import PruneWeights

__all__ = ["drawn", "main", "redrawn"]

_OTHER_SEED = 1000
"""What is added to a seed to draw other weights."""


def drawn(seed: int) -> Graph:
    """LeNet-300-100 that has not been trained: weights as Glorot & Bengio (2010), no biases."""
    reference = NETWORKS["lenet-300-100"]
    torch.manual_seed(seed)
    network = reference.build()
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.onnx"
        export(network, reference.shape, path)
        return Graph.load(path)


def redrawn(ticket: Graph, fresh: Graph) -> Graph:
    """Fresh weights where the ticket has some, and zeros elsewhere."""
    graph, weights = fresh.clone(), find_weights(ticket)[0]
    for name, weight in weights.items():
        new = fresh.constant(name)
        assert new is not None, "both networks are drawn alike"
        graph.set_constant(name, np.where(weight != 0, new, new.dtype.type(0)))
    keep_weights(graph, pruned=weights)
    return graph


@click.command()
@click.option("--data", "spec", default="mnist", show_default=True, help="A named data set.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--sparsity", default=0.8, show_default=True)
@click.option("--steps", default=7, show_default=True, help="Rounds of pruning and rewinding.")
@click.option("--epochs", default=10.0, show_default=True, help="Of every training.")
@click.option("--rate", default=1.2e-3, show_default=True, help="Of Adam.")
@click.option(
    "--schedule", default="constant", show_default=True, type=click.Choice(["constant", "cosine"])
)
@click.option("--decay", default=0.0, show_default=True, help="Of weights.")
def main(
    spec: str,
    seeds: int,
    sparsity: float,
    steps: int,
    epochs: float,
    rate: float,
    schedule: Literal["constant", "cosine"],
    decay: float,
) -> None:
    """Train whole networks, their tickets and redrawn ones."""
    click.echo(f"{'seed':>4} {'weights':>8} {'whole':>7} {'ticket':>7} {'redrawn':>8}   error %")
    for seed in range(seeds):
        whole, ticket, other = drawn(seed), drawn(seed), drawn(seed + _OTHER_SEED)
        specs = input_specs(whole)
        train, test = (data.open(f"{spec}:{part}", specs) for part in ("train", "test"))
        alone = Finetune(
            epochs=epochs,
            rate=rate,
            schedule=schedule,
            weight_decay=decay,
            optimizer="adamw",
            augment=(),
        )
        _run(alone, whole, train, seed)
        finding = PruneWeights(
            sparsity=sparsity,
            allocation="uniform",
            course="rewind",
            steps=steps,
            **{entry.name: vars(alone)[entry.name] for entry in fields(Plan)},
        )
        _run(finding, ticket, train, seed)
        other = redrawn(ticket, other)
        _run(alone, other, train, seed)
        left = sum(np.count_nonzero(weight) for weight in find_weights(ticket)[0].values())
        errors = [measured(graph, test) for graph in (whole, ticket, other)]
        click.echo(f"{seed:4} {left:8,} {errors[0]:7.2f} {errors[1]:7.2f} {errors[2]:8.2f}")


def _run(step: Pass, graph: Graph, train: Dataset, seed: int) -> None:
    step.run(graph, Context(original=graph.clone(), calibration=train, seed=seed))


if __name__ == "__main__":
    main()
