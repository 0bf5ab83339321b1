"""The unit that restored scales of BatchNormalization are measured in, noted in the model.

Scales that were trained start alike in all layers and can be compared as they are. Those that were
restored are as large as the sums of their layer happen to be, so each layer's own mean is the unit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from graphopt.ir import Graph

__all__ = ["note_units", "noted_units"]

_KEY = "graphopt.scales"


def note_units(graph: Graph, units: Mapping[str, float]) -> None:
    """Note units of scales, by name, beside those that are noted already."""
    merged = {**noted_units(graph), **units}
    graph.set_metadata(_KEY, json.dumps(merged, separators=(",", ":")) if merged else None)


def noted_units(graph: Graph) -> dict[str, float]:
    """The units of the scales that are still there; all others have 1."""
    text = graph.metadata.get(_KEY)
    found: Mapping[str, float] = json.loads(text) if text else {}
    return {name: unit for name, unit in found.items() if graph.constant(name) is not None}
