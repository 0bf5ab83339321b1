"""The weights of layers: what is pruned and shared, and why other constants are left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.coupling.naming import matching_names
from graphopt.errors import RecipeError
from graphopt.ir import Array, Graph, is_uniform
from graphopt.rewrite.matching import is_op

__all__ = ["choose_weights", "depth_axis", "find_weights", "stored_as"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_STORES = ("Cast", "DequantizeLinear", "Gather", "QuantizeLinear")
"""Operators that a stored weight goes through, as their first input."""
_MOST_REASONS = 3


def find_weights(graph: Graph) -> tuple[dict[str, Array], dict[str, str]]:
    """Weights by name, in the order of their layers, and why others that layers read are not.

    A weight that several layers read is one weight: it is changed once, for all of them.
    """
    names = dict.fromkeys(
        node.inputs[1].name for node in graph.all_nodes() if is_op(node, *_LAYERS)
    )
    found: dict[str, Array] = {}
    reasons: dict[str, str] = {}
    for name in names:
        array = graph.constant(name)
        if array is None and stored_as(graph, name) is not None:
            reasons[name] = "it is stored as codes or in another type"
        if array is None or array.ndim < 2 or array.dtype.kind not in "fV":
            continue
        others = [node for node in graph.consumers(name) if not is_op(node, *_LAYERS)]
        if others:
            reasons[name] = f"{others[0].op} {others[0].name!r} reads it too"
        elif graph.is_output(name):
            reasons[name] = "it is an output"
        elif array.dtype.kind == "V":
            reasons[name] = f"it is {array.dtype.name}"
        elif not array.size:
            reasons[name] = "it is empty"
        elif is_uniform(array):
            reasons[name] = "its file holds one number for all of it"
        elif not np.isfinite(array).all():
            reasons[name] = "it is not finite"
        else:
            found[name] = array
    return found, reasons


def choose_weights(
    graph: Graph, patterns: Sequence[str], who: str
) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """The weights that patterns name, and why others that they name are left alone.

    Raises RecipeError, by `who`, if there are none.
    """
    found, reasons = find_weights(graph)
    for pattern in patterns:
        if not matching_names([*found, *reasons], (pattern.removeprefix("!"),)):
            known = ", ".join(found) or "none"
            raise RecipeError(f"{who}: no weight is called {pattern!r}; there are {known}")
    chosen = {name: found[name] for name in matching_names(found, patterns)}
    if not chosen:
        why = "; ".join(f"{name}: {reason}" for name, reason in [*reasons.items()][:_MOST_REASONS])
        raise RecipeError(f"{who}: there is no weight to work on{f' ({why})' if why else ''}")
    return chosen, {name: reasons[name] for name in matching_names(reasons, patterns)}


def stored_as(graph: Graph, name: str) -> str | None:
    """The constant that a weight is or is computed from: a codebook, integers, half floats."""
    maker = graph.producer(name) if name in graph else None
    if maker is None:
        return None if graph.constant(name) is None else name
    if not is_op(maker, *_STORES):
        return None
    sources = [stored_as(graph, str(tensor.name)) for tensor in maker.inputs]
    return None if None in sources else sources[0]


def depth_axis(graph: Graph, name: str) -> int:
    """The axis of the inputs of a layer's weight, along which a row is summed."""
    node = graph.consumers(name)[0]
    array = graph.constant(name)
    assert array is not None, "a weight is constant"
    if node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0)):
        return 1
    return 0 if node.op in ("ConvTranspose", "Gemm") else array.ndim - 2
