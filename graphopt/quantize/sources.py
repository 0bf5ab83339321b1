"""Where the ranges of activations come from: inputs, or statistics of BatchNormalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.quantize.collecting import Collected, Effort, collect
from graphopt.quantize.observed import Observed
from graphopt.quantize.placement import Placement, place
from graphopt.quantize.plan import watched
from graphopt.quantize.reaching import Reach, reaches

__all__ = ["calibrated", "expected"]

Seen = dict[str, Observed]


def calibrated(
    graph: Graph,
    placement: Placement,
    dataset: Dataset,
    effort: Effort,
    progress: Callable[[float], None],
) -> tuple[Collected, Seen]:
    """What every tensor with a grid has shown; one that is only moved, what its source has."""
    groups = watched(placement)
    observed = {name for group in groups.values() for name in group}
    order = [*graph.inputs, *(tensor.name for node in graph.nodes for tensor in node.outputs)]
    names = [name for name in order if name in observed]
    found = collect(graph, names, dataset, effort, progress=progress)
    return found, _shared(found.seen, placement)


def _shared(seen: Mapping[str, Observed], placement: Placement) -> Seen:
    whole = dict(seen)
    for group, sources in watched(placement).items():
        for name in placement.groups[group]:
            whole.setdefault(name, seen[sources[0]])
    return whole


def expected(
    graph: Graph, original: Graph, exclude: Sequence[str], inputs: tuple[float, ...]
) -> tuple[Seen, list[str]]:
    """What statistics say of every tensor with a grid, and the units that so stay in floats.

    `inputs` are the ends of float inputs, if they are known. Raises RecipeError if no layer's
    ranges are known.
    """
    known = reaches(graph, original, inputs)
    unknown: list[str] = []
    while True:
        placement = place(graph, exclude, floats=unknown)
        lacking = {
            name
            for group, sources in watched(placement).items()
            if not all(_is_finite(known.get(source)) for source in sources)
            for name in placement.groups[group]
        }
        users = [unit.name for unit in placement.units if lacking & {*unit.reads, *unit.outputs}]
        if not users:
            break
        unknown += users
    if not any(unit.weight for unit in placement.units):
        raise RecipeError(
            "quantize-static: calibrator=batch-norm needs BatchNormalization around layers, in the "
            "model or folded in the same run; there is none whose statistics give the ranges of "
            "what a layer reads and makes; give --data and another calibrator"
        )
    seen = {
        name: Observed.of(np.array([known[name].ends()], np.float32))
        for sources in watched(placement).values()
        for name in sources
    }
    return _shared(seen, placement), unknown


def _is_finite(reach: Reach | None) -> bool:
    return reach is not None and bool(np.isfinite(reach.ends()).all())
