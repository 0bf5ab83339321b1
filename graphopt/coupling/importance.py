"""How much each channel of a family matters: one small function per criterion.

A criterion gives one row of scores for each tensor or layer it looks at, higher scores stay. The
rows are brought to a common unit and combined.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.coupling.families import Family
from graphopt.coupling.reconstruction import backward, forward, lasso
from graphopt.coupling.statistics import Activation, Measure, Scores, Statistics
from graphopt.coupling.units import noted_units
from graphopt.errors import NotFinite
from graphopt.ir import Array, Graph

__all__ = ["COMBINATIONS", "IMPORTANCES", "Criterion", "importance", "sum_along"]

Rows = Callable[[Family, Graph, Statistics], Iterator[Scores]]
Unit = Callable[[Scores], float]


def mean(row: Scores) -> float:
    return float(row.mean())


def length(row: Scores) -> float:
    """The Euclidean norm, as Molchanov et al. (2017) divide by."""
    return float(np.linalg.norm(row))


def one(row: Scores) -> float:
    """For what is comparable as it is: errors and losses, and scales that were trained together."""
    return 1.0


@dataclass(frozen=True)
class Criterion:
    """A way to score channels, what it must have measured, and where it does not apply.

    Rows are divided by their `unit`, so that families of different layers can be compared.
    """

    rows: Rows
    lacks: str
    needs: Measure | None = None
    unit: Unit = field(default=mean)


def importance(
    name: str, family: Family, graph: Graph, statistics: Statistics, combine: str = "max"
) -> Scores | None:
    """The scores of a family's channels; None where the criterion has nothing to look at.

    Raises NotFinite for weights that are not finite.
    """
    _check_finite(family, graph)
    criterion = IMPORTANCES[name]
    rows = list(criterion.rows(family, graph, statistics))
    if not rows:
        return None
    rows = [row / (criterion.unit(row) or 1.0) for row in rows]
    return np.asarray(COMBINATIONS[combine](np.array(rows)), np.float64)


COMBINATIONS: Mapping[str, Callable[[Scores], Scores]] = {
    "max": lambda rows: rows.max(axis=0),
    "mean": lambda rows: rows.mean(axis=0),
    "sum": lambda rows: rows.sum(axis=0),
}
"""By the name the option `combine` has: from (tensor, channel) to (channel,)."""


def _check_finite(family: Family, graph: Graph) -> None:
    for member in family.members:
        array = graph.constant(member.tensor)
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotFinite(
                f"importance: weight {member.tensor!r} holds NaN or infinite values; "
                "look at how the model was trained or exported"
            )


def _weights(family: Family, graph: Graph) -> Iterator[tuple[Array, int, Callable[..., Scores]]]:
    """Every weight of a family with its axis, and a sum over the places of each channel."""
    for member in family.members:
        weight = graph.constant(member.tensor)
        if weight is None or weight.ndim < 2 or weight.dtype.kind not in "fiu":
            continue

        def by_channel(
            per_index: Scores, places: Array = member.places, channels: Array = member.channels
        ) -> Scores:
            return _summed(family, channels, per_index[places])

        yield weight, member.axis, by_channel


def _summed(family: Family, channels: Array, values: Scores) -> Scores:
    """A value per place as one per channel."""
    sums = np.bincount(channels.astype(np.int64), weights=values, minlength=family.size)
    return sums.astype(np.float64)


def _from_weights(norm: Callable[[Array, int], Scores]) -> Rows:
    """A criterion out of a number per index of an axis of a weight."""

    def rows(family: Family, graph: Graph, statistics: Statistics) -> Iterator[Scores]:
        for weight, axis, by_channel in _weights(family, graph):
            yield by_channel(norm(weight, axis))

    return rows


def sum_along(array: Array, axis: int, subscripts: str) -> Scores:
    """Contract an array with itself or with ones over all axes but one, without a copy of it."""
    axis %= array.ndim
    outer = int(np.prod(array.shape[:axis], dtype=np.int64))
    cube = array.astype(np.float32, copy=False).reshape(outer, array.shape[axis], -1)
    operands = [cube] * (subscripts.count(",") + 1)
    return np.asarray(np.einsum(subscripts, *operands), dtype=np.float64)


def _l2(weight: Array, axis: int) -> Scores:
    return np.sqrt(sum_along(weight, axis, "anb,anb->n"))


def _l1(weight: Array, axis: int) -> Scores:
    return sum_along(np.abs(weight), axis, "anb->n")


def _geometric_median(weight: Array, axis: int) -> Scores:
    """The summed distance to all other filters: the least is nearest to their median."""
    filters = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float32)
    squares = np.einsum("nb,nb->n", filters, filters)
    distances = squares[:, np.newaxis] + squares - 2 * (filters @ filters.T)
    return np.asarray(np.sqrt(np.maximum(distances, 0)).sum(axis=1), np.float64)


def _random(family: Family, graph: Graph, statistics: Statistics) -> Iterator[Scores]:
    seed = [statistics.seed, zlib.crc32(family.name.encode())]
    yield np.random.default_rng(seed).random(family.size)


def _batch_norm_scale(family: Family, graph: Graph, statistics: Statistics) -> Iterator[Scores]:
    units = noted_units(graph)
    for member in family.members:
        scale = graph.constant(member.tensor)
        if scale is not None and any(
            node.op == "BatchNormalization" and node.inputs[1].name == member.tensor
            for node in graph.consumers(member.tensor)
        ):
            size = np.abs(scale.astype(np.float64))[member.places]
            yield _summed(family, member.channels, size / units.get(member.tensor, 1.0))


def _from_activations(
    score: Callable[[Activation], Scores], applies: Callable[[Activation], bool]
) -> Rows:
    def rows(family: Family, graph: Graph, statistics: Statistics) -> Iterator[Scores]:
        for activation in statistics.activations.get(family.name, ()):
            if applies(activation):
                yield score(activation)

    return rows


def _from_grams(score: Callable[[Scores], Scores]) -> Rows:
    """A criterion that looks at all layers that read a family at once, each relative to itself."""

    def rows(family: Family, graph: Graph, statistics: Statistics) -> Iterator[Scores]:
        readings = statistics.readings.get(family.name, ())
        grams = [
            reading.gram / reading.gram.sum() for reading in readings if reading.gram.sum() > 0
        ]
        if grams:
            yield score(np.sum(grams, axis=0))

    return rows


def _hessian_diagonal(family: Family, graph: Graph, statistics: Statistics) -> Iterator[Scores]:
    for reading in statistics.readings.get(family.name, ()):
        yield reading.curvature / (reading.gram.sum() or 1.0)


def _taylor(family: Family, graph: Graph, statistics: Statistics) -> Iterator[Scores]:
    found = statistics.sensitivities.get(family.name)
    yield from () if found is None else found.activations


def _taylor_weight(family: Family, graph: Graph, statistics: Statistics) -> Iterator[Scores]:
    found = statistics.sensitivities.get(family.name)
    if found is not None and found.weights is not None:
        yield found.weights


def _taylor_gate(family: Family, graph: Graph, statistics: Statistics) -> Iterator[Scores]:
    found = statistics.sensitivities.get(family.name)
    if found is not None and found.gates is not None:
        yield found.gates


_NO_NORM = "it passes through no BatchNormalization"
_NO_ACTIVATION = "no layer sums over its channels"
_NO_READING = "no Conv, Gemm or MatMul with constant weights sums over its channels"

IMPORTANCES: Mapping[str, Criterion] = {
    "activation-variance": Criterion(
        _from_activations(lambda a: a.variance, lambda a: a.read),
        _NO_ACTIVATION,
        Measure.ACTIVATIONS,
    ),
    "apoz": Criterion(
        _from_activations(lambda a: 1 - a.zeros, lambda a: bool(a.zeros.any())),
        "none of its activations is ever zero; use mean-activation",
        Measure.ACTIVATIONS,
    ),
    "batch-norm-scale": Criterion(_batch_norm_scale, _NO_NORM, unit=one),
    "geometric-median": Criterion(_from_weights(_geometric_median), "it has no weights"),
    "hessian-diagonal": Criterion(_hessian_diagonal, _NO_READING, Measure.READINGS, unit=one),
    "l1": Criterion(_from_weights(_l1), "it has no weights"),
    "l2": Criterion(_from_weights(_l2), "it has no weights"),
    "lasso": Criterion(_from_grams(lasso), _NO_READING, Measure.READINGS),
    "mean-activation": Criterion(
        _from_activations(lambda a: a.mean_abs, lambda a: a.read),
        _NO_ACTIVATION,
        Measure.ACTIVATIONS,
    ),
    "random": Criterion(_random, ""),
    "reconstruction": Criterion(_from_grams(backward), _NO_READING, Measure.READINGS, unit=one),
    "reconstruction-forward": Criterion(
        _from_grams(forward), _NO_READING, Measure.READINGS, unit=one
    ),
    "taylor": Criterion(_taylor, _NO_ACTIVATION, Measure.ACTIVATION_GRADIENTS, unit=length),
    "taylor-gate": Criterion(_taylor_gate, _NO_NORM, Measure.WEIGHT_GRADIENTS, unit=one),
    "taylor-weight": Criterion(
        _taylor_weight, "no gradient reaches its weights", Measure.WEIGHT_GRADIENTS, unit=one
    ),
}
"""By the name the option `importance` has; higher scores stay."""
