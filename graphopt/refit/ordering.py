"""In which order the channels of a family go, by a criterion of importance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graphopt.coupling import Coupling, Family
from graphopt.coupling.importance import IMPORTANCES, importance
from graphopt.coupling.statistics import GRADIENTS, Measure, Scores, Statistics
from graphopt.coupling.statistics import Reading as Contributions
from graphopt.data import Dataset
from graphopt.refit.solving import Reader, least_squares
from graphopt.runtime.calibrating import calibrate

__all__ = ["Ordering", "ordering_of", "surgeon"]

_DAMPING = 1e-4

Ordering = Callable[[Family, Sequence[Reader]], list[int] | None]
"""From a family and the layers that read it to all its channels, first those that go first.

None where the criterion does not apply.
"""


def surgeon(family: Family, readers: Sequence[Reader]) -> list[int] | None:
    """No order beforehand: each time the one goes whose loss costs least (see `eliminate`)."""
    return None


def ordering_of(
    name: str,
    coupling: Coupling,
    dataset: Dataset,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Ordering:
    """The order by a criterion of importance.

    One that looks at what channels give to the layers that read them is asked anew for each
    family, with what those layers read then; the others score the coupled graph.
    """
    needs = IMPORTANCES[name].needs
    if needs is Measure.READINGS:
        graph = coupling.graph.clone()

        def by_contributions(family: Family, readers: Sequence[Reader]) -> list[int] | None:
            found = tuple(_contributions(reader, family.size) for reader in readers)
            statistics = Statistics(readings={family.name: found}, seed=seed)
            return _order(importance(name, family, graph, statistics))

        return by_contributions
    statistics = Statistics(seed=seed)
    if needs in GRADIENTS:
        from graphopt.refit.gradients import sense  # brings torch, which others do not need

        statistics = sense(
            coupling, coupling.families, dataset, needs,
            seed=seed, threads=threads, progress=progress,
        )  # fmt: skip
    elif needs is not None:
        statistics = calibrate(
            coupling, coupling.families, dataset, {needs},
            seed=seed, threads=threads, progress=progress,
        )  # fmt: skip
    scores: Mapping[str, Scores | None] = {
        family.name: importance(name, family, coupling.graph, statistics)
        for family in coupling.families
    }
    return lambda family, readers: _order(scores[family.name])


def _order(scores: Scores | None) -> list[int] | None:
    return None if scores is None else np.argsort(scores, kind="stable").tolist()


def _contributions(reader: Reader, channels: int) -> Contributions:
    """What each channel gives to a layer that is solved for what it reads."""
    moments, size = reader.moments, reader.per_channel
    own = channels * size
    solved = least_squares(moments, _DAMPING)[0, :own]
    gram = moments.gram[0, :own, :own] / max(moments.rows, 1)
    products = (solved @ solved.T) * gram
    curvature = np.square(solved).sum(axis=1) * gram.diagonal()
    return Contributions(
        "",
        products.reshape(channels, size, channels, size).sum(axis=(1, 3)),
        curvature.reshape(channels, size).sum(axis=1),
    )
