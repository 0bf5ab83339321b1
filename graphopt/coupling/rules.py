"""The table of ties, one row per operator, and the walk that applies it to a graph."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.cost import operator
from graphopt.coupling.axes import Axes, Fixed, Unfit
from graphopt.coupling.convolutions import CONVOLUTIONS
from graphopt.coupling.indexing import INDEXING
from graphopt.coupling.layout import LAYOUT
from graphopt.coupling.normalisations import NORMALISATIONS
from graphopt.coupling.pointwise import POINTWISE
from graphopt.coupling.products import PRODUCTS
from graphopt.coupling.reshaping import RESHAPING
from graphopt.coupling.sequences import SEQUENCES
from graphopt.coupling.site import Rules, Site
from graphopt.coupling.sizes import Sizes
from graphopt.coupling.wiring import Wiring
from graphopt.ir import Graph, bodies

__all__ = ["RULES", "wire"]

RULES: Rules = {
    **CONVOLUTIONS,
    **INDEXING,
    **LAYOUT,
    **NORMALISATIONS,
    **POINTWISE,
    **PRODUCTS,
    **RESHAPING,
    **SEQUENCES,
}
"""An operator that has no row here is pinned: every axis of all it reads and writes."""


def wire(graph: Graph, sizes: Sizes, rules: Rules = RULES) -> Wiring:
    """Apply a table to every node of the main scope; what a body reads is pinned."""
    wiring = Wiring()
    for name in graph.inputs:
        shape = sizes.shape(name)
        wiring.axes[name] = None if shape is None else _held(shape, f"input {name!r}")
    for node in graph.nodes:
        _apply(Site(node, wiring, sizes), rules)
    for name in graph.outputs if graph.nodes else ():  # without nodes nothing is coupled
        why = Fixed(None, f"output {name!r}", "is what the caller gets")
        wiring.pin_all(Site(graph.nodes[-1], wiring, sizes).axes_of(name), why)
    return wiring


def _held(shape: tuple[int | None, ...], who: str) -> Axes:
    return tuple(Fixed(size, who, "is what the caller gives") for size in shape)


def _apply(site: Site, rules: Rules) -> None:
    rule = rules.get(operator(site.node))
    known = site.wiring.axes
    outputs = [tensor.name for tensor in site.node.outputs]
    if rule is None:
        inner = any(True for _ in bodies(site.node))
        reason = "has bodies, which are not followed" if inner else "is not in the table of ties"
        return _pin(site, reason)
    if not any(outputs):
        return None
    try:
        made = rule(site)
    except Unfit as reason:
        return _pin(site, str(reason))
    for name, axes in zip(outputs, made, strict=False):
        if name:
            known[name] = axes
    for name in outputs[len(made) :]:
        if name:
            known[name] = None
    return None


def _pin(site: Site, reason: str) -> None:
    """Let nothing be removed from what a node reads or writes."""
    why = site.fixed(None, reason)
    for name in sorted(_read(site.node)):
        if name in site.wiring.axes or site.sizes.constant(name) is not None:
            site.wiring.pin_all(site.axes_of(name), why)
    for tensor in site.node.outputs:
        if tensor.name:
            shape = site.sizes.shape(tensor.name)
            site.wiring.axes[tensor.name] = (
                None if shape is None else tuple(site.fixed(size, reason) for size in shape)
            )


def _read(node: gs.Node) -> set[str]:
    """The tensors that a node or a body inside it reads."""
    names = {tensor.name for tensor in node.inputs if tensor.name}
    for body in bodies(node):
        names |= {tensor.name for tensor in body.outputs}
        for inner in body.nodes:
            names |= _read(inner)
    return names
