"""The graph as it is trained: class scores before their softmax, tensors inside beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from graphopt.data import Dataset, input_specs
from graphopt.ir import Graph
from graphopt.lens import lower
from graphopt.train.batches import Outputs
from graphopt.train.formats import as_outputs
from graphopt.train.rows import Rows

__all__ = ["adopt_weights", "before_softmax", "is_scores", "sample_outputs"]


def before_softmax(graph: Graph, name: str) -> str:
    """What goes into the softmax whose result is this tensor; the tensor itself if none is.

    A softmax of a softmax would teach too little, and the logarithm of one loses digits.
    """
    maker = graph.producer(name)
    if maker is None or maker.op != "Softmax" or maker.domain:
        return name
    return str(maker.inputs[0].name)


def is_scores(output: torch.Tensor) -> bool:
    """Whether an output looks like class scores (rows, classes), maybe with axes of size 1."""
    wide = [size for size in output.shape[1:] if size != 1]
    return len(wide) == 1 and wide[0] >= 2 and output.is_floating_point()


def sample_outputs(graph: Graph, dataset: Dataset, count: int) -> Outputs:
    """What a graph gives for the first rows of its data."""
    dataset = dataset.bind(input_specs(graph))
    rows = Rows(dataset.take(dataset.fixed_batch or count), graph, torch.device("cpu"))
    with torch.no_grad():
        return as_outputs(lower(graph)(*rows.read(np.arange(len(rows)))))


def adopt_weights(graph: Graph, view: Graph, names: Sequence[str]) -> None:
    """Give a graph the values that constants have in a view of it."""
    for name in names:
        array = view.constant(name)
        assert array is not None, f"{name!r} is a constant of the view"
        graph.set_constant(name, array)
