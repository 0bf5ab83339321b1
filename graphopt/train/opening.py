"""Networks that were exported for one batch size, opened to any for training."""

from __future__ import annotations

import numpy as np
import torch

from graphopt.data import Dataset, input_specs
from graphopt.data.inputs import batch_axes, fixed_batch
from graphopt.errors import GraphoptError
from graphopt.ir import Edit, Graph, NewNode
from graphopt.lens import lower
from graphopt.rewrite.matching import is_op
from graphopt.train.batches import Outputs
from graphopt.train.formats import as_outputs
from graphopt.train.rows import Rows

__all__ = ["open_batch"]

_TOLERANCE = 1e-4
"""Of an output's range: other sizes of batches are summed in another order."""


def open_batch(graph: Graph, dataset: Dataset) -> Graph:
    """The network for batches of any size; itself if it takes these, or would not treat rows alike.

    Sizes of 1, say, are written into reshapes, where they become what comes in. Two batches of the
    data at once must then give what they give one after the other.
    """
    specs = input_specs(graph)
    size = fixed_batch(specs)
    if size is None or len(dataset) < 2 * size:
        return graph
    axes = {
        name: axis
        for name, axis in batch_axes(specs).items()
        if axis is not None and graph.shape(name)
    }
    opened = graph.with_open_axes(axes, "batch")
    for node in opened.nodes:
        named = is_op(node, "Reshape") and len(node.inputs) > 1
        shape = opened.constant(node.inputs[1].name) if named else None
        read = graph.shape(node.inputs[0].name) if shape is not None else None
        if shape is None or not read or node.attrs.get("allowzero", 0):
            continue
        if shape.size and int(shape[0]) == read[0] == size:
            new = np.concatenate([np.zeros(1, np.int64), np.asarray(shape[1:], np.int64)])
            inputs, outputs = (node.inputs[0].name, new), (node.outputs[0].name,)
            reshape = NewNode("Reshape", inputs, outputs, name=node.name)
            opened.apply(Edit(remove=(node,), add=(reshape,)))
    opened.reshape_notice()
    return opened if _treats_rows_alike(graph, opened, dataset, size) else graph


def _treats_rows_alike(graph: Graph, opened: Graph, dataset: Dataset, size: int) -> bool:
    def given(network: Graph, first: int, count: int) -> Outputs:
        bound = dataset.bind(input_specs(network))
        rows = Rows(bound.take(2 * size), network, torch.device("cpu"))
        with torch.no_grad():
            return as_outputs(lower(network)(*rows.read(np.arange(first, first + count))))

    try:
        whole = given(opened, 0, 2 * size)
        halves = given(graph, 0, size), given(graph, size, size)
    # Sizes that are written elsewhere show as whatever torch makes of them.
    except (GraphoptError, RuntimeError, ValueError, IndexError):
        return False
    return all(_equal(one, torch.cat(parts)) for one, *parts in zip(whole, *halves, strict=True))


def _equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    span = float(wanted.double().abs().max()) if wanted.numel() else 0.0
    return torch.allclose(found.double(), wanted.double(), rtol=0, atol=_TOLERANCE * span)
