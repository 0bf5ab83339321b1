"""An edit: what goes, what comes and what is redirected, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from graphopt.ir.reading import Array

__all__ = ["Edit", "NewNode", "remade"]


@dataclass(frozen=True)
class NewNode:
    """A node to be added. An input is a tensor's name, "" if omitted, or an array (a constant)."""

    op: str
    inputs: tuple[str | Array, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, object] = field(default_factory=dict)
    domain: str = ""
    name: str = ""


@dataclass(frozen=True)
class Edit:
    """One change of a graph's structure, decided before anything is touched.

    remove      nodes that go; what they produced must be produced anew, replaced, or unused
    add         nodes that come, in topological order, in the scope of the first removed node
                (or of `scope_of`, for pure insertions)
    replace     {old tensor: new tensor}: every use is redirected, names of outputs survive
    constants   {name: array}: constants that are created or given a new value; a tensor that a
                removed node computed becomes a constant under its own name
    """

    remove: tuple[gs.Node, ...] = ()
    add: tuple[NewNode, ...] = ()
    replace: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    scope_of: gs.Node | None = None


def remade(
    node: gs.Node,
    inputs: Mapping[int, str | Array],
    attributes: Mapping[str, object | None] | None = None,
) -> NewNode:
    """A node again, with other inputs at some places (or after them), and new attributes."""
    names: list[str | Array] = [tensor.name for tensor in node.inputs]
    for place in sorted(inputs):
        while len(names) <= place:
            names.append("")
        names[place] = inputs[place]
    changed = {**node.attrs, **(attributes or {})}
    return NewNode(
        node.op,
        tuple(names),
        tuple(tensor.name for tensor in node.outputs),
        {key: value for key, value in changed.items() if value is not None},
        node.domain or "",
        node.name,
    )
