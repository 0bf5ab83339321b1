"""Random inputs that a model is known to run on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from graphopt.cost import Role, open_dims
from graphopt.data import Dataset
from graphopt.errors import RuntimeUnavailable
from graphopt.ir import Graph
from graphopt.runtime.drawing import Draw, Input, draw_array, inputs_of
from graphopt.runtime.session import Session

__all__ = ["Feeds", "example_feeds", "random_feeds", "runnable_feeds"]


@dataclass(frozen=True)
class Feeds:
    """Inputs that a model has run on, how they were drawn, and what it gave for them."""

    arrays: Mapping[str, np.ndarray]
    draw: Draw
    outputs: tuple[np.ndarray, ...]


# What to try for an open size, likeliest first: powers of two that strides divide, the usual image
# sizes, and the lengths that convolutions and windows over time need.
_SIZES: Mapping[Role, tuple[int, ...]] = {
    Role.BATCH: (2, 1),
    Role.SPATIAL: (64, 32, 224, 320, 16, 48, 96, 128, 299),
    Role.SEQUENCE: (8, 16, 512, 1, 64, 128, 576, 1024, 16000),
}
_INTEGERS = (10, 2, 1, 0)
_MOST_DRAWS = 300
_MOST_SECONDS = 30.0
_MOST_FINITE_TRIES = 3
_MOST_REASONS = 3


def random_feeds(graph: Graph, seed: int, draw: Draw | None = None) -> dict[str, np.ndarray]:
    """Draw inputs of the right shapes and types; indices stay inside what they index.

    Raises RuntimeUnavailable for an input that is not a tensor.
    """
    inputs = inputs_of(graph)
    return _arrays(inputs, seed, draw or next(_draws(graph, inputs)))


def example_feeds(graph: Graph, dataset: Dataset | None, seed: int) -> Mapping[str, np.ndarray]:
    """One batch of the smallest size to time or measure sizes with: of the data, else drawn."""
    if dataset is None:
        return runnable_feeds(graph, seed).arrays
    return next(iter(dataset.batches(1)))


def runnable_feeds(
    graph: Graph, seed: int, *, session: Session | None = None, batch: int | None = None
) -> Feeds:
    """Draw inputs until `graph` runs on them, and gives finite outputs if it ever does.

    `session` is one that has `graph` open already. `batch` is the only size to try where the batch
    is open; None tries several. Raises RuntimeUnavailable with the reasons.
    """
    if session is None:
        with Session.open(graph, optimize="none") as own:
            return runnable_feeds(graph, seed, session=own, batch=batch)
    inputs = inputs_of(graph)
    reasons: dict[str, Draw] = {}
    start, tried = time.monotonic(), 0
    for draw in itertools.islice(_draws(graph, inputs, batch), _MOST_DRAWS):
        tried += 1
        found = _attempt(inputs, seed, draw, session)
        if isinstance(found, Feeds):
            return _finite(inputs, seed, found, session)
        reasons.setdefault(found, draw)
        if time.monotonic() - start > _MOST_SECONDS:
            break
    raise RuntimeUnavailable(
        f"feeds: the model ran on none of {tried} random inputs; give it real data: "
        f"{_summary(reasons)}"
    )


def _attempt(inputs: tuple[Input, ...], seed: int, draw: Draw, session: Session) -> Feeds | str:
    arrays = _arrays(inputs, seed, draw)
    try:
        return Feeds(arrays, draw, tuple(session.run(arrays)))
    except RuntimeUnavailable as error:
        return str(error)


def _arrays(inputs: tuple[Input, ...], seed: int, draw: Draw) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {given.name: draw_array(given, draw, seed, rng) for given in inputs}


def _finite(inputs: tuple[Input, ...], seed: int, first: Feeds, session: Session) -> Feeds:
    """Outputs that are not finite prove little: look around for better ones."""
    best, bad = first, _nonfinite(first)
    for further in range(_MOST_FINITE_TRIES if bad else 0):
        draw = replace(first.draw, positive=True, turn=first.draw.turn + further)
        found = _attempt(inputs, seed, draw, session)
        if isinstance(found, Feeds) and _nonfinite(found) < bad:
            best, bad = found, _nonfinite(found)
    return best


def _nonfinite(feeds: Feeds) -> int:
    floats = [array for array in feeds.outputs if array.dtype.kind == "f"]
    return sum(int(np.count_nonzero(~np.isfinite(array))) for array in floats)


def _draws(graph: Graph, inputs: tuple[Input, ...], batch: int | None = None) -> Iterator[Draw]:
    """Likeliest first; the batch varies fastest, for most models take any or just one."""
    dims = open_dims(graph)
    roles = {dim.role for dim in dims}
    ladders = [
        list(enumerate(_SIZES[role] if role in roles else (1,)))
        for role in (Role.SPATIAL, Role.SEQUENCE)
    ]
    rungs = sorted(itertools.product(*ladders), key=lambda rung: rung[0][0] + rung[1][0])
    bounds = _INTEGERS if any(given.is_integer for given in inputs) else _INTEGERS[:1]
    turns = range(max((given.options for given in inputs), default=1))
    batches = _SIZES[Role.BATCH] if batch is None and Role.BATCH in roles else (batch or 1,)
    signs = (False, True) if any(given.is_floating for given in inputs) else (False,)
    for bound, positive, rung, turn, size in itertools.product(
        bounds, signs, rungs, turns, batches
    ):
        (_, spatial), (_, sequence) = rung
        by_role = {Role.BATCH: size, Role.SPATIAL: spatial, Role.SEQUENCE: sequence}
        sizes = {dim.key: by_role[dim.role] for dim in dims}
        yield Draw(_with_sums(sizes), bound, turn, positive)


def _with_sums(sizes: Mapping[str, int]) -> dict[str, int]:
    """Let sizes that are named after others ("past_length + 1") follow from them."""

    def value(term: str) -> int | None:
        return int(term) if term.isdigit() else sizes.get(term)

    result = dict(sizes)
    for key in sizes:
        terms = [value(term.strip()) for term in key.split("+")]
        known = [term for term in terms if term is not None]
        if len(terms) > 1 and len(known) == len(terms):
            result[key] = sum(known)
    return result


def _summary(reasons: Mapping[str, Draw]) -> str:
    shown = []
    for reason, draw in itertools.islice(reasons.items(), _MOST_REASONS):
        sizes = ", ".join(f"{key}={size}" for key, size in draw.sizes.items())
        shown.append(f"{reason} (with {sizes})" if sizes else reason)
    more = len(reasons) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
