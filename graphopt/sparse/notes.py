"""Notes in a model of which weights are pruned and which share values, for the training to come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.sparse.weights import stored_as

__all__ = ["Kept", "keep_weights", "kept_weights", "pass_notes_on"]

_KEY = "graphopt.weights"


@dataclass(frozen=True)
class Kept:
    """Weights whose zeros stay zero, and weights whose equal elements stay equal."""

    pruned: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


def kept_weights(graph: Graph) -> Kept:
    """The constants that the model notes, or that noted weights are computed from by now.

    Raises ModelError for a note that cannot be read.
    """
    noted = _noted(graph)
    pruned, shared = (
        tuple(dict.fromkeys(found for name in names if (found := stored_as(graph, name))))
        for names in (noted.pruned, noted.shared)
    )
    return Kept(pruned, shared)


def keep_weights(graph: Graph, *, pruned: Iterable[str] = (), shared: Iterable[str] = ()) -> None:
    """Note more weights."""
    known = _noted(graph)
    noted = {
        "pruned": [name for name in dict.fromkeys([*known.pruned, *pruned]) if name in graph],
        "shared": [name for name in dict.fromkeys([*known.shared, *shared]) if name in graph],
    }
    if any(noted.values()):
        graph.set_metadata(_KEY, json.dumps(noted))


def pass_notes_on(graph: Graph, heirs: Mapping[str, str]) -> None:
    """Note of the keys, tensors that have come instead of weights, what is noted of those."""
    known = _noted(graph)
    keep_weights(
        graph,
        pruned=[heir for heir, name in heirs.items() if name in known.pruned],
        shared=[heir for heir, name in heirs.items() if name in known.shared],
    )


def _noted(graph: Graph) -> Kept:
    text = graph.metadata.get(_KEY)
    if text is None:
        return Kept()
    try:
        found = json.loads(text)
        lists = [found["pruned"], found["shared"]]
    except (ValueError, TypeError, KeyError):
        lists = [None]
    if not all(isinstance(n, list) and all(isinstance(e, str) for e in n) for n in lists):
        raise ModelError(
            f"metadata {_KEY!r}: must list the names of weights that are pruned and shared, found "
            f"{text[:40]!r}; take the entry out of the model"
        )
    return Kept(*map(tuple, lists))
