"""Notes in a model of which weights are pruned and which share values, for the training to come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from graphopt.ir import Graph

__all__ = ["Kept", "keep_weights", "kept_weights"]

_KEY = "graphopt.weights"


@dataclass(frozen=True)
class Kept:
    """Weights whose zeros stay zero, and weights whose equal elements stay equal."""

    pruned: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


def kept_weights(graph: Graph) -> Kept:
    """What the model notes, as far as it still has those weights."""
    note = graph.metadata.get(_KEY)
    if note is None:
        return Kept()
    noted = json.loads(note)
    pruned, shared = (
        tuple(name for name in noted[key] if graph.constant(name) is not None)
        for key in ("pruned", "shared")
    )
    return Kept(pruned, shared)


def keep_weights(graph: Graph, *, pruned: Iterable[str] = (), shared: Iterable[str] = ()) -> None:
    """Note more weights."""
    known = kept_weights(graph)
    noted = {
        "pruned": list(dict.fromkeys([*known.pruned, *pruned])),
        "shared": list(dict.fromkeys([*known.shared, *shared])),
    }
    graph.set_metadata(_KEY, json.dumps(noted))
