"""Store biases with the steps of the products they are added to.

Kernels on integers add a bias to sums of products of codes, so its step has to be the product of
the other two: ONNX Runtime computes a layer in floats where it is another.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode, remade
from graphopt.quantize.grid import BIAS, Floats, Grid
from graphopt.quantize.stored_layers import read_grid, step_of
from graphopt.rewrite.matching import is_op

__all__ = ["restep_biases", "store_bias"]


def store_bias(
    graph: Graph, node: gs.Node, stem: str, values: npt.NDArray[np.floating], steps: Floats
) -> None:
    """Let a layer read its bias from integers with these steps, one for each value."""
    zeros = np.zeros(values.shape, BIAS.dtype)
    stored = Grid(np.ascontiguousarray(np.broadcast_to(steps, values.shape)), zeros, BIAS, 0)
    codes, scale, back = (graph.fresh(f"{stem}_{part}") for part in ("q", "scale", "dq"))
    read = NewNode("DequantizeLinear", (codes, scale), (back,), {"axis": 0})
    constants: dict[str, Array] = {codes: stored.quantize(values), scale: stored.scale}
    add = read, remade(node, {2: back})
    graph.apply(Edit(remove=(node,), add=add, constants=constants))


def restep_biases(graph: Graph) -> int:
    """Store anew the biases whose steps are no such products any more; return how many were."""
    count = 0
    for node in graph.nodes:
        found = _astray(graph, node)
        if found is not None:
            store_bias(graph, node, str(node.inputs[2].name).removesuffix("_dq"), *found)
            count += 1
    return count


def _astray(graph: Graph, node: gs.Node) -> tuple[Floats, Floats] | None:
    """The values of a stored bias and the steps it should have.

    None where it has them, and where 32 bits would not hold it with these.
    """
    if not is_op(node, "Conv", "Gemm") or len(node.inputs) < 3 or not node.inputs[2].name:
        return None
    weight, bias = (graph.producer(node.inputs[place].name) for place in (1, 2))
    if any(maker is None or not is_op(maker, "DequantizeLinear") for maker in (weight, bias)):
        return None
    assert weight is not None, "it was looked at"
    assert bias is not None, "it was looked at"
    codes, scale = graph.constant(bias.inputs[0].name), graph.constant(weight.inputs[1].name)
    step = step_of(graph, str(node.inputs[0].name))
    if codes is None or scale is None or step is None or codes.dtype != BIAS.dtype:
        return None
    grid = read_grid(graph, bias, codes)
    if grid is None or codes.ndim != 1 or scale.size not in (1, codes.size):
        return None
    steps = scale.reshape(-1).astype(np.float32) * np.float32(step)
    values = grid.dequantize(codes)
    held = np.abs(values.astype(np.float64)) <= steps.astype(np.float64) * BIAS.high
    return None if bool(np.all(steps == grid.scale)) or not held.all() else (values, steps)
