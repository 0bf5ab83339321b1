"""Observe the values of intermediate tensors while a model runs over a data set."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.runtime.session import Optimize, Session

__all__ = ["batch_size_for", "observe"]

_BATCH = 32
_BATCH_BYTES = 256 << 20
"""What the observed tensors of one batch may hold together."""


def observe(
    graph: Graph,
    names: Sequence[str],
    dataset: Dataset,
    *,
    batch_size: int,
    threads: int = 1,
    optimize: Optimize = "none",
    check: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """The values of tensors, inputs among them, by name, for one batch after the other.

    Only what they depend on is run; the last batch may be smaller. Where nothing is optimized no
    weight is copied; optimized, the run is faster and rounds otherwise. Raises DataError for
    values that are not finite, if they are to be checked.
    """
    wanted = list(dict.fromkeys(names))
    computed = [name for name in wanted if name not in graph.inputs]
    with ExitStack() as loaded:
        session = None
        if computed:
            part = graph.with_outputs(computed)
            session = loaded.enter_context(Session.open(part, threads=threads, optimize=optimize))
        for feeds in dataset.batches(batch_size):
            made = session.run(feeds) if session is not None else []
            found = {**feeds, **dict(zip(computed, made, strict=True))}
            yield {name: _finite(name, found[name]) if check else found[name] for name in wanted}


def batch_size_for(graph: Graph, tensors: Collection[str]) -> int:
    """As many inputs as fit, given what one of them makes of the tensors; open sizes count as 1."""
    each = 0
    for tensor in tensors:
        shape, dtype = graph.shape(tensor) or (), graph.dtype(tensor)
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        each += math.prod(sizes) * (4 if dtype is None else dtype.itemsize)
    return max(1, min(_BATCH, _BATCH_BYTES // max(each, 1)))


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            f"observe: tensor {name!r} holds NaN or infinite values, "
            f"{np.count_nonzero(~np.isfinite(array))} of {array.size} in a batch; "
            "look at the data and at the weights before it"
        )
    return array
