"""Take QuantizeLinear and DequantizeLinear out of a graph again, so that it computes in floats."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import RecipeError
from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.quantize.placement import is_quantized_op
from graphopt.quantize.rules import RULES, Role
from graphopt.quantize.stored_layers import read_grid
from graphopt.rewrite.matching import is_op
from graphopt.rewrite.ramps import never_negative

__all__ = ["to_floats"]

_SIX = 6.0
_KEEPS_SIGNS = ("AveragePool", "Concat", "GlobalAveragePool")


def to_floats(graph: Graph) -> int:
    """Read stored constants back and remove grids from computed tensors; return how many went.

    A grid that begins at 0 clamps, and may stand for a Relu that was absorbed, one that ends at 6
    for a Clip: these come back where values could be negative. Grids of the model's own inputs
    and outputs that are integers stay. Raises RecipeError for operators that compute on integers
    themselves, and for codes that are no integers.
    """
    other = sorted({node.op for node in graph.all_nodes() if is_quantized_op(node)} - _PAIR)
    if other:
        raise RecipeError(
            "quantize-static: requantize takes back QuantizeLinear and DequantizeLinear, the model "
            f"computes by {', '.join(other[:3])}; give the float model, or one with such pairs"
        )
    readers = [node for node in graph.nodes if is_op(node, "DequantizeLinear")]
    for node in readers:
        _check_type(graph, str(node.inputs[0].name))
    count, earlier = 0, dict[str, str]()
    for node in readers:
        edit = _constant(graph, node) or _pair(graph, node)
        if edit is not None:
            earlier |= {new: old for old, new in edit.replace.items()}
            graph.apply(edit)
            count += 1
    graph.prune()
    for now, name in earlier.items():
        if now in graph and name not in graph and graph.producer(now) and not graph.is_output(now):
            graph.rename(now, name)
    graph.reshape_notice()
    return count


_PAIR = {"DequantizeLinear", "QuantizeLinear"}


def _check_type(graph: Graph, codes: str) -> None:
    dtype = graph.dtype(codes)
    if dtype is not None and "int" not in dtype.name:
        raise RecipeError(
            f"quantize-static: requantize takes back integers, {codes!r} holds {dtype.name}; give "
            "the float model"
        )


def _constant(graph: Graph, node: gs.Node) -> Edit | None:
    codes = graph.constant(node.inputs[0].name)
    grid = None if codes is None else read_grid(graph, node, codes)
    if codes is None or grid is None:
        return None
    name = str(node.outputs[0].name)
    values = grid.dequantize(codes).astype(_float_type(graph, name))
    return Edit(remove=(node,), constants={name: values})


def _pair(graph: Graph, node: gs.Node) -> Edit | None:
    """What reads the tensor back from its grid reads the tensor, behind the clamp that it was."""
    rounder = graph.producer(node.inputs[0].name)
    if rounder is None or not is_op(rounder, "QuantizeLinear"):
        return None
    if not _reads_back(graph, rounder, node):
        return None
    source, name = str(rounder.inputs[0].name), str(node.outputs[0].name)
    bounds = _absorbed(graph, rounder, node)
    if bounds is None and graph.can_replace(name, source):
        return Edit(remove=(node,), replace={name: source})
    if bounds is None:
        return Edit(remove=(node,), add=(NewNode("Identity", (source,), (name,)),))
    ends: tuple[Array, ...] = tuple(np.array(end, _float_type(graph, source)) for end in bounds)
    made = NewNode("Clip", (source, *ends), (name,))
    if bounds[1] == math.inf:
        made = NewNode("Relu", (source,), (name,))
    return Edit(remove=(node,), add=(made,))


def _float_type(graph: Graph, name: str) -> np.dtype[np.generic]:
    found = graph.dtype(name)
    return np.dtype(np.float32) if found is None else found


def _reads_back(graph: Graph, rounder: gs.Node, node: gs.Node) -> bool:
    """Whether codes are read with the scale and zero point that made them.

    They need not be: a factor can be folded into either.
    """
    layouts = [[n.attrs.get("axis", 1), n.attrs.get("block_size", 0)] for n in (rounder, node)]
    return layouts[0] == layouts[1] and all(_same(graph, rounder, node, at) for at in (1, 2))


def _same(graph: Graph, rounder: gs.Node, node: gs.Node, place: int) -> bool:
    """Whether both read the same there, where nothing is a zero point of 0."""
    names = [str(n.inputs[place].name) if len(n.inputs) > place else "" for n in (rounder, node)]
    if names[0] == names[1]:
        return True
    one, other = (graph.constant(name) if name else np.zeros((), np.int32) for name in names)
    return one is not None and other is not None and bool(np.all(one == other))


def _absorbed(graph: Graph, rounder: gs.Node, node: gs.Node) -> tuple[float, float] | None:
    """The clamp that a grid may stand for, if what it rounds could be outside."""
    maker = graph.producer(rounder.inputs[0].name)
    form = graph.dtype(node.inputs[0].name)
    grid = None if form is None else read_grid(graph, node, np.empty((), form))
    if grid is None or maker is None or maker.op not in RULES or never_negative(graph, rounder):
        return None
    if RULES[maker.op].role is Role.MOVE or maker.op in _KEEPS_SIGNS:
        return None
    low, high = grid.limits()
    if low.size != 1 or float(low.reshape(())) != 0:
        return None
    step = float(grid.scale.reshape(()))
    return 0.0, _SIX if abs(float(high.reshape(())) - _SIX) <= step else math.inf
