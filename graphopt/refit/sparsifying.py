"""Prune layers one by one by what their outputs lose, and solve what is left anew.

Energy-aware pruning (Yang, Chen & Sze 2017): the layers that take most energy go first, since what
goes later has less to make up for it. In each filter the smallest weights go, those whose return
helps the output most come back, and least squares fit what is left to the output as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.refit.frontier import Frontier
from graphopt.refit.layers import Doubles, Layer, find_layer
from graphopt.refit.solving import Moments
from graphopt.refit.walking import WIDEST

__all__ = ["Costs", "Sparse", "Sparsifying", "sparsify"]

_ROWS = 20_000
"""Rows that a layer's moments are taken from, about."""


@dataclass(frozen=True)
class Costs:
    """Energy of one multiply-accumulate and of one access of 16 bits to each kind of memory.

    As on Eyeriss, in units of a 16-bit multiply-accumulate: weights are fetched from memory once,
    activations are written to and read from memory, and pass the global buffer for each reader.
    """

    product: float = 1.0
    buffer: float = 6.0
    memory: float = 200.0


@dataclass(frozen=True)
class Sparsifying:
    """`restore` is the part of the weights that stay which are chosen by the output's error."""

    sparsity: float
    restore: float = 0.2
    damping: float = 1e-4
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Sparse:
    """What became of a layer: its part of all energy before, and its error after each step."""

    energy: float
    pruned: float
    restored: float
    solved: float


def sparsify(
    graph: Graph,
    names: Collection[str],
    dataset: Dataset,
    how: Sparsifying,
    costs: Costs,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[dict[str, Sparse], dict[str, str]]:
    """Prune the layers with these weights in place, to give what the graph has given until now.

    Returns their reports in the order they went, and why other weights are left alone. Errors are
    relative to the energy of what the layer's output was.
    """
    given = graph.clone()
    layers, left_alone = _solvable(graph, names)
    before = {layer.output: _energy(graph, layer, dataset, costs, how) for layer in layers}
    total = sum(before.values()) or 1.0
    reports: dict[str, Sparse] = {}
    for layer in sorted(layers, key=lambda layer: -before[layer.output]):
        progress(len(reports) / len(layers))
        moments = _moments(graph, given, layer, dataset, how)
        matrix = layer.matrix(graph)
        pruned, restored, solved = _solved(matrix, moments, how)
        scale = moments.energy or 1.0
        errors = [moments.error(one) / scale for one in (pruned, restored, solved)]
        layer.write(graph, solved)
        reports[layer.weight] = Sparse(before[layer.output] / total, *errors)
    return reports, left_alone


def _solvable(graph: Graph, names: Collection[str]) -> tuple[list[Layer], dict[str, str]]:
    """The layers with these weights that can be solved, and why those with others cannot."""
    found = [find_layer(graph, node) for node in graph.nodes]
    layers = {layer.weight: layer for layer in found if layer is not None}
    solvable: list[Layer] = []
    left_alone: dict[str, str] = {}
    for name in names:
        columns = layers[name].matrix(graph).shape[1] if name in layers else 0
        if name not in layers:
            left_alone[name] = "what reads it is no layer that can be solved"
        elif columns > WIDEST:
            left_alone[name] = f"{columns} weights per output are too many to solve for"
        else:
            solvable.append(layers[name])
    return solvable, left_alone


def _energy(graph: Graph, layer: Layer, dataset: Dataset, costs: Costs, how: Sparsifying) -> float:
    """The energy of one run for one input, weights that are zero left out."""
    walk = Frontier(graph, dataset.take(1), limit=0, threads=how.threads)
    (values,) = walk.batches([layer.data, layer.output])
    weight = graph.constant(layer.weight)
    assert weight is not None, "a layer's weight is constant"
    left = int(np.count_nonzero(weight))
    places = layer.count(values[layer.data])
    moved = (values[layer.data].size + values[layer.output].size) / len(values[layer.data])
    words = weight.itemsize / 2
    fetched = words * (costs.memory * (left + moved) + costs.buffer * (left + moved))
    return float(costs.product * words**2 * left * places + fetched)


def _moments(
    graph: Graph, given: Graph, layer: Layer, dataset: Dataset, how: Sparsifying
) -> Moments:
    """Of the layer's inputs as they are now, with the outputs that it gave before."""
    now = Frontier(graph, dataset, limit=0, threads=how.threads)
    then = Frontier(given, dataset, limit=0, threads=how.threads)
    shape = layer.matrix(graph).shape
    moments = Moments.empty(shape[0], shape[1], shape[2], bias=layer.has_bias)
    rng, count = np.random.default_rng(how.seed), -(-_ROWS // len(dataset))
    for made, aim in zip(now.batches([layer.data]), then.batches([layer.output]), strict=True):
        places = layer.places(made[layer.data], count, rng)
        moments.add(layer.rows(made[layer.data], places), layer.results(aim[layer.output], places))
    return moments


def _solved(
    matrix: Doubles, moments: Moments, how: Sparsifying
) -> tuple[Doubles, Doubles, Doubles]:
    """The matrix pruned by magnitude, with weights restored, and solved anew; zeros stay."""
    pruned, restored, solved = matrix.copy(), matrix.copy(), matrix.copy()
    gram, ridge = moments.gram, moments.ridge(how.damping)
    weights = matrix.shape[1] - moments.bias
    for group, output in np.ndindex(matrix.shape[0], matrix.shape[2]):
        filter_ = matrix[group, :, output]
        keep = max(1, round((1 - how.sparsity) * weights))
        plain = _largest(np.abs(filter_[:weights]), keep)
        chosen = _largest(np.abs(filter_[:weights]), max(1, round(keep * (1 - how.restore))))
        cross = moments.cross[group, :, output]
        chosen = _restored(filter_, chosen, keep, gram[group], cross) & (filter_[:weights] != 0)
        for target, mask in ((pruned, plain), (restored, chosen)):
            target[group, :weights, output] = np.where(mask, filter_[:weights], 0)
        support = np.flatnonzero(np.append(chosen, [True] * moments.bias))
        inner = gram[group][np.ix_(support, support)] + np.diag(ridge[group, support])
        right = cross[support] + ridge[group, support] * filter_[support]
        solved[group, :, output] = 0
        solved[group, support, output] = np.linalg.solve(inner, right)
    return pruned, restored, solved


def _largest(scores: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(len(scores), np.bool_)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def _restored(
    filter_: npt.NDArray[np.float64],
    kept: npt.NDArray[np.bool_],
    count: int,
    gram: Doubles,
    cross: npt.NDArray[np.float64],
) -> npt.NDArray[np.bool_]:
    """Let weights return one after another, each time the one that lowers the error most."""
    kept = kept.copy()
    weights = len(kept)
    now = np.append(np.where(kept, filter_[:weights], 0), filter_[weights:])
    slope = cross - gram @ now
    diagonal = gram.diagonal()
    for _ in range(count - int(np.count_nonzero(kept))):
        gain = 2 * filter_ * slope - filter_**2 * diagonal
        gain[:weights][kept] = -np.inf
        best = int(np.argmax(gain[:weights]))
        kept[best] = True
        slope = slope - filter_[best] * gram[:, best]
    return kept
