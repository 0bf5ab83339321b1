"""Observe the values of intermediate tensors while a model runs over a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.runtime.session import Optimize, Session

__all__ = ["batch_size_for", "bytes_of_one", "observe", "observing"]

_BATCH = 32
_BATCH_BYTES = 256 << 20
"""What the observed tensors of one batch may hold together."""

_Values = dict[str, np.ndarray]
_Look = Callable[[Mapping[str, np.ndarray]], _Values]


@contextmanager
def observing(
    graph: Graph,
    names: Sequence[str],
    *,
    threads: int = 1,
    optimize: Optimize = "none",
    check: bool = True,
) -> Iterator[_Look]:
    """Lend a function from a batch to the values of tensors, inputs among them, by name.

    Several threads may call it at once. Only what the tensors depend on is run. Where nothing is
    optimized no weight is copied; optimized, the run is faster and rounds otherwise. Raises
    DataError for values that are not finite, if they are to be checked.
    """
    wanted = list(dict.fromkeys(names))
    computed = [name for name in wanted if name not in graph.inputs]

    def found(feeds: Mapping[str, np.ndarray], made: Sequence[np.ndarray]) -> _Values:
        values = {**feeds, **dict(zip(computed, made, strict=True))}
        return {name: _finite(name, values[name]) if check else values[name] for name in wanted}

    if not computed:
        yield lambda feeds: found(feeds, ())
        return
    part = graph.with_outputs(computed)
    with Session.open(part, threads=threads, optimize=optimize) as session:
        yield lambda feeds: found(feeds, session.run(feeds))


def observe(
    graph: Graph,
    names: Sequence[str],
    dataset: Dataset,
    *,
    batch_size: int,
    threads: int = 1,
    optimize: Optimize = "none",
    check: bool = True,
) -> Iterator[_Values]:
    """What `observing` gives for one batch after the other; the last may be smaller."""
    with observing(graph, names, threads=threads, optimize=optimize, check=check) as look:
        yield from map(look, dataset.batches(batch_size))


def batch_size_for(graph: Graph, tensors: Collection[str], dataset: Dataset) -> int:
    """As many inputs as fit, given what one of them makes of the tensors."""
    return max(1, min(_BATCH, _BATCH_BYTES // bytes_of_one(graph, tensors, dataset)))


def bytes_of_one(graph: Graph, tensors: Collection[str], dataset: Dataset) -> int:
    """What the tensors hold for one input, at least 1.

    Where the graph leaves sizes open, the first inputs are run to see.
    """
    total = 0
    for tensor in tensors:
        shape, dtype = graph.shape(tensor), graph.dtype(tensor)
        sizes = (None,) if shape is None else shape[1:]
        if dtype is None or not all(isinstance(size, int) for size in sizes):
            return _seen_bytes(graph, tensors, dataset.take(1))
        total += math.prod(size for size in sizes if isinstance(size, int)) * dtype.itemsize
    return max(total, 1)


def _seen_bytes(graph: Graph, tensors: Collection[str], dataset: Dataset) -> int:
    batches = observe(graph, [*tensors], dataset, batch_size=len(dataset), check=False)
    total = sum(array.nbytes for batch in batches for array in batch.values())
    return max(total // len(dataset), 1)


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            f"observe: tensor {name!r} holds NaN or infinite values, "
            f"{np.count_nonzero(~np.isfinite(array))} of {array.size} in a batch; "
            "look at the data and at the weights before it"
        )
    return array
