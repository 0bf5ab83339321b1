"""The trainable view: a graph lent as a module, its weights written back when the loan ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from graphopt.errors import ModelError
from graphopt.ir import Array, Graph
from graphopt.lens.dtypes import to_array
from graphopt.lens.lowering import LoweredModule, lower

__all__ = ["trainable", "write_back"]


@contextmanager
def trainable(graph: Graph) -> Iterator[LoweredModule]:
    """Lend a graph as a module; a block left normally writes every changed weight back by name.

    A block left by an exception writes nothing. The view lends values, never structure.
    """
    module = lower(graph)
    yield module
    write_back(module, graph)


def write_back(module: LoweredModule, graph: Graph) -> tuple[str, ...]:
    """Give the graph the module's weights where a byte differs; return the changed names.

    Everything is checked before anything is changed. Raises ModelError.
    """
    tensors: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    changed: dict[str, Array] = {}
    for path, name in module.binding.items():
        old, new = graph.constant(name), tensors.get(path)
        if old is None or new is None or old.shape != tuple(new.shape):
            found = "is gone" if old is None or new is None else f"has shape {tuple(new.shape)}"
            raise ModelError(
                f"trainable view: {name!r} ({path} of the module) {found}; train weights, and "
                f"change structure on the graph"
            )
        array = to_array(new, old.dtype)
        if not _same_bytes(old, array):
            changed[name] = np.array(array, order="C")
    for name, array in changed.items():
        graph.set_constant(name, array)
    return tuple(changed)


def _same_bytes(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape and type agree in every bit, NaN and -0 included."""
    left, right = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (a, b))
    return bool(np.array_equal(left, right))
