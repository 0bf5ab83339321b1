"""Measure again what every BatchNormalization normalises by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.refit.frontier import Frontier
from graphopt.runtime.moments import Moments

__all__ = ["re_estimate"]


def re_estimate(
    graph: Graph,
    dataset: Dataset,
    *,
    threads: int = 1,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[list[str], list[str]]:
    """Give every BatchNormalization the mean and variance that its input has on a data set.

    From front to back, each behind those already set. Returns the outputs of those that were set,
    and of those that were not: their statistics are computed, or shared with another node.
    """
    nodes = [node for node in graph.nodes if node.op == "BatchNormalization"]
    frontier = Frontier(graph, dataset, threads=threads)
    done, skipped = [], []
    for number, node in enumerate(nodes):
        names = [node.inputs[place].name for place in (3, 4)]
        if not all(_own(graph, name) for name in names) or names[0] == names[1]:
            skipped.append(node.outputs[0].name)
            continue
        for name, values in zip(names, _moments(frontier, node), strict=True):
            old = graph.constant(name)
            assert old is not None, "only constants are set"
            graph.set_constant(name, values.astype(old.dtype))
        done.append(node.outputs[0].name)
        progress((number + 1) / len(nodes))
    return done, skipped


def _own(graph: Graph, name: str) -> bool:
    return graph.constant(name) is not None and len(graph.consumers(name)) == 1


def _moments(frontier: Frontier, node: gs.Node) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every channel."""
    moments = Moments(axis=1)
    for batch in frontier.batches([node.inputs[0].name]):
        (array,) = batch.values()
        moments.update(array)
    return moments.mean, moments.variance
