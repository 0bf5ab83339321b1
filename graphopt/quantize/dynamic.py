"""Products of matrices on 8-bit integers whose ranges are taken from each input as it comes.

    y = x W + b   becomes   DynamicQuantizeLinear(x) -> MatMulInteger -> Cast -> Mul -> Add

ONNX Runtime makes one node of it. Layers that read the same tensor share its integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.quantize.grid import Format, Grid
from graphopt.quantize.scales import fit_grid
from graphopt.quantize.storage import Weight

__all__ = ["multiply_integers", "why_not"]


def why_not(graph: Graph, weight: Weight) -> str | None:
    """Why the layers that read a weight cannot multiply integers; None if they can."""
    array = graph.constant(weight.name)
    assert array is not None, "a weight is constant"
    for node in weight.nodes:
        if node.op not in ("Gemm", "MatMul"):
            return f"ONNX Runtime has nothing fast for {node.op} with ranges taken as it runs"
        if array.ndim != 2 or node.attrs.get("transA", 0):
            return "it multiplies stacks of matrices, or a transposed input"
        if bool(node.attrs.get("transB", 0)) != weight.turn:
            return "some of its readers transpose it, some do not"
        if graph.dtype(node.inputs[0].name) != np.float32:
            return "what it is multiplied with is not known to be float32"
    return None


@dataclass
class _Shared:
    """For each tensor, and the scope it is read in, its integers, scale and zero point."""

    made: dict[tuple[str, int], tuple[str, str, str]] = field(default_factory=dict)


def multiply_integers(graph: Graph, weights: Mapping[str, Weight], format: Format) -> None:  # noqa: A002
    """Rewrite every layer that reads one of these weights; `why_not` has no objection to them."""
    shared = _Shared()
    for weight in weights.values():
        array = weight.array(graph)
        grid = fit_grid(array, format, 1)
        codes = grid.quantize(array)
        hidden = graph.fresh(f"{weight.name}_codes")
        graph.rename(weight.name, hidden)
        made: list[NewNode] = []
        constants: dict[str, Array] = {hidden: codes}
        for node in weight.nodes:
            made.extend(_layer(graph, node, hidden, grid, shared, constants))
        graph.apply(Edit(remove=weight.nodes, add=tuple(made), constants=constants))


def _layer(
    graph: Graph,
    node: gs.Node,
    codes: str,
    grid: Grid,
    shared: _Shared,
    constants: dict[str, Array],
) -> list[NewNode]:
    data, output = str(node.inputs[0].name), str(node.outputs[0].name)
    nodes: list[NewNode] = []
    place = data, id(graph.scope_of(node))
    if place not in shared.made:
        names = tuple(graph.fresh(f"{data}_{part}") for part in ("codes", "scale", "zero"))
        shared.made[place] = (names[0], names[1], names[2])
        nodes.append(NewNode("DynamicQuantizeLinear", (data,), names))
    quantized, scale, zero = shared.made[place]
    factor = np.asarray(grid.scale * np.float32(node.attrs.get("alpha", 1.0)), np.float32)
    summed, cast, step = (graph.fresh(f"{output}_{part}") for part in ("sum", "float", "step"))
    nodes += [
        NewNode("MatMulInteger", (quantized, codes, zero), (summed,), name=node.name),
        NewNode("Cast", (summed,), (cast,), {"to": onnx.TensorProto.FLOAT}),
        NewNode("Mul", (scale, factor), (step,)),
    ]
    bias = str(node.inputs[2].name) if len(node.inputs) > 2 else ""
    if not bias:
        return [*nodes, NewNode("Mul", (cast, step), (output,))]
    product = graph.fresh(f"{output}_product")
    nodes.append(NewNode("Mul", (cast, step), (product,)))
    beta = np.float32(node.attrs.get("beta", 1.0))
    if beta != 1.0:
        weighed = graph.fresh(f"{bias}_weighed")
        nodes.append(NewNode("Mul", (bias, np.array(beta)), (weighed,)))
        bias = weighed
    return [*nodes, NewNode("Add", (product, bias), (output,))]
