"""Measure families of channels on calibration inputs: one run, nothing kept but sums."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt

from graphopt.coupling import Coupling, Family, Member
from graphopt.coupling.statistics import Activation, Measure, Reading, Statistics
from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.runtime.contributions import Gathering, readers
from graphopt.runtime.moments import Moments
from graphopt.runtime.observing import batch_size_for, observe

__all__ = ["calibrate", "observed_members"]

_CLAMPS = frozenset({"Clip", "HardSigmoid", "HardSwish", "Max", "Relu", "ThresholdedRelu"})
"""Operators whose results are often exactly zero."""

_Floats = npt.NDArray[np.float64]


def calibrate(
    coupling: Coupling,
    families: Sequence[Family],
    dataset: Dataset,
    measures: Collection[Measure],
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Statistics:
    """Run the coupled graph over a data set and measure what is wanted of some families.

    Raises DataError for activations that are not finite, and for too few inputs.
    """
    moments = _moments(coupling, families) if Measure.ACTIVATIONS in measures else {}
    rng = np.random.default_rng(seed)
    gathered: dict[str, list[Gathering]] = {}
    if Measure.READINGS in measures:
        for family in families:
            gathered[family.name] = [
                Gathering(coupling.graph, node, member, family.size, rng)
                for node, member in readers(coupling, family)
            ]
    by_tensor: dict[str, list[Moments | Gathering]] = {}
    for (tensor, _), moment in moments.items():
        by_tensor.setdefault(tensor, []).append(moment)
    for gathering in (entry for entries in gathered.values() for entry in entries):
        by_tensor.setdefault(gathering.tensor, []).append(gathering)
    done = 0
    order = [tensor.name for node in coupling.graph.nodes for tensor in node.outputs]
    size = batch_size_for(coupling.graph, by_tensor, dataset)
    for batch in observe(
        coupling.graph,
        [name for name in order if name in by_tensor],
        dataset,
        batch_size=size,
        threads=threads,
    ):
        for tensor, array in batch.items():
            for entry in by_tensor[tensor]:
                entry.update(array)
        done += size
        progress(min(1.0, done / len(dataset)))
    _check_samples(families, gathered, dataset)
    return Statistics(
        {family.name: _activations(coupling, family, moments) for family in families},
        {name: tuple(_readings(entries)) for name, entries in gathered.items()},
        seed,
    )


def observed_members(
    coupling: Coupling, family: Family
) -> dict[tuple[str, int], tuple[Member, bool]]:
    """The activations to look at, and which of them a layer reads: those, and those that clamp.

    All of them, where no layer sums over the family.
    """
    read = {member.tensor for _, member in readers(coupling, family)}
    found = {}
    for member in coupling.activations(family):
        dtype = coupling.graph.dtype(member.tensor)
        maker = coupling.graph.producer(member.tensor)
        if dtype is None or dtype.kind != "f" or maker is None:
            continue
        if not read or member.tensor in read or maker.op in _CLAMPS:
            found[member.tensor, member.axis] = (member, not read or member.tensor in read)
    return found


def _moments(coupling: Coupling, families: Sequence[Family]) -> dict[tuple[str, int], Moments]:
    keys = {key for family in families for key in observed_members(coupling, family)}
    return {(tensor, axis): Moments(axis) for tensor, axis in sorted(keys)}


def _activations(
    coupling: Coupling, family: Family, moments: dict[tuple[str, int], Moments]
) -> tuple[Activation, ...]:
    found = []
    for key, (member, read) in observed_members(coupling, family).items():
        moment = moments.get(key)
        if moment is None:
            continue
        counts = np.bincount(member.channels, minlength=family.size)

        def average(
            values: _Floats,
            places: npt.NDArray[np.int64] = member.places,
            channels: npt.NDArray[np.int64] = member.channels,
            counts: npt.NDArray[np.int64] = counts,
        ) -> _Floats:
            sums = np.bincount(channels, weights=values[places], minlength=len(counts))
            return np.asarray(sums / np.maximum(counts, 1), np.float64)

        found.append(
            Activation(
                member.tensor,
                read,
                average(moment.mean),
                average(moment.variance),
                average(moment.mean_abs),
                average(moment.zeros),
            )
        )
    return tuple(found)


def _readings(entries: Sequence[Gathering]) -> list[Reading]:
    return [entry.reading() for entry in entries]


def _check_samples(
    families: Sequence[Family], gathered: dict[str, list[Gathering]], dataset: Dataset
) -> None:
    """Fewer samples than channels leave it open what most channels contribute."""
    for family in families:
        for entry in gathered.get(family.name, ()):
            if entry.samples < family.size:
                needed = -(-len(dataset) * family.size // max(entry.samples, 1))
                raise DataError(
                    f"calibrate: {len(dataset)} inputs are too few to judge the {family.size} "
                    f"channels of {family.name!r}; give at least {needed}"
                )
