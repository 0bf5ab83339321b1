"""Which part of every tensor a removal of channels leaves, and a note of it in the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from graphopt.coupling import Coupling
from graphopt.coupling.axes import Fixed
from graphopt.coupling.removal import Plan, kept_components
from graphopt.ir import Graph

__all__ = [
    "Traces",
    "merged_traces",
    "noted_traces",
    "traces_are_current",
    "traces_of",
    "write_traces",
]

Traces = Mapping[str, Mapping[int, npt.NDArray[np.int64]]]
"""For each tensor that a cut has made smaller: axis -> indices of the original that are left."""

_KEY = "graphopt.kept"


def traces_of(coupling: Coupling, plan: Plan) -> Traces:
    """For each computed tensor that would get smaller, the indices that stay.

    Ask before removing.
    """
    keep = kept_components(coupling, plan)[coupling.solution.component]
    found = {}
    for name, axes in coupling.wiring.axes.items():
        kept = {
            place: np.flatnonzero(keep[axis])
            for place, axis in enumerate(axes or ())
            if not isinstance(axis, Fixed) and not keep[axis].all()
        }
        if kept and coupling.graph.constant(name) is None:
            found[name] = kept
    return found


def merged_traces(earlier: Traces, later: Traces) -> Traces:
    """What two cuts leave of the original, given what the later one leaves of the earlier."""
    merged = {name: dict(axes) for name, axes in earlier.items()}
    for name, axes in later.items():
        own = merged.setdefault(name, {})
        for axis, kept in axes.items():
            own[axis] = own[axis][kept] if axis in own else kept
    return merged


def write_traces(graph: Graph, traces: Traces, *, current: bool = True) -> None:
    """Note in the model what is left of its tensors, by all cuts.

    Not `current` means that the graph was changed otherwise since an earlier cut.
    """
    tensors = {
        name: {str(axis): _packed(kept) for axis, kept in axes.items()}
        for name, axes in traces.items()
    }
    document = {"graph": _digest(graph) if current else "", "tensors": tensors}
    graph.set_metadata(_KEY, json.dumps(document, separators=(",", ":")))


def noted_traces(graph: Graph) -> Traces:
    """What has been noted, of the tensors that are still there and as large as it says.

    Ask before removing more.
    """
    text = graph.metadata.get(_KEY)
    document: Mapping[str, Mapping[str, str]] = json.loads(text)["tensors"] if text else {}
    found = {}
    for name, axes in document.items():
        shape = graph.shape(name) if name in graph else None
        unpacked = {int(axis): _unpacked(bits) for axis, bits in axes.items()}
        if shape is not None and all(
            axis < len(shape) and shape[axis] in (len(kept), None)
            for axis, kept in unpacked.items()
        ):
            found[name] = unpacked
    return found


def traces_are_current(graph: Graph) -> bool:
    """Whether the graph has the structure that it had when its traces were noted."""
    text = graph.metadata.get(_KEY)
    return text is None or json.loads(text)["graph"] == _digest(graph)


def _digest(graph: Graph) -> str:
    """Of what is computed from what. Training changes weights, but not what tensors are."""
    nodes = [
        (node.op, [t.name for t in node.inputs], [t.name for t in node.outputs])
        for node in graph.nodes
    ]
    return hashlib.sha256(json.dumps(nodes).encode()).hexdigest()


def _packed(kept: npt.NDArray[np.int64]) -> str:
    bits = np.zeros(int(kept.max()) + 1, np.uint8)
    bits[kept] = 1
    return np.packbits(bits).tobytes().hex()


def _unpacked(text: str) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)))
