"""How much an error at each place of a tensor matters to the outputs, by gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.lens import lower
from graphopt.lens.dtypes import to_tensor
from graphopt.refit.gradients import torch_threads
from graphopt.runtime.observing import batch_size_for

__all__ = ["place_weights"]

Floats = npt.NDArray[np.float32]

_MOST = 50.0
"""No place counts more than so many times the mean."""

_LEAST = 0.1


def place_weights(
    graph: Graph,
    tensors: Mapping[str, int],
    dataset: Dataset,
    power: float,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Floats]:
    """For each tensor, whose channels are on the axis given, the weight of each (input, place).

    The square of the derivative of a random mixture of the outputs, summed over channels, to a
    power; the mean is 1. No labels are used. Raises UnsupportedOp for an operator without a
    lowering and DataError for gradients that are not finite.
    """
    outputs = [n for n in graph.outputs if (d := graph.dtype(n)) is not None and d.kind == "f"]
    names = list(dict.fromkeys([*outputs, *tensors]))
    found: dict[str, list[Floats]] = {name: [] for name in tensors}
    size = max(1, batch_size_for(graph, list(tensors)) // 2)
    draws = torch.Generator().manual_seed(seed)
    done = 0
    with torch_threads(threads):
        module = lower(graph.with_outputs(names))
        for feeds in dataset.batches(size):
            made = module(*(_given(feeds[name]) for name in graph.inputs))
            values = dict(zip(names, made if isinstance(made, tuple) else (made,), strict=True))
            mixture = torch.stack([_mixture(values[name], draws) for name in outputs]).sum()
            shown = [values[name] for name in tensors]
            slopes = torch.autograd.grad(mixture, shown, allow_unused=True, materialize_grads=True)
            for (name, axis), slope in zip(tensors.items(), slopes, strict=True):
                square = slope.square().sum(axis).reshape(len(slope), -1)
                found[name].append(square.numpy().astype(np.float32, copy=False))
            done += len(next(iter(feeds.values())))
            progress(done / len(dataset))
    return {name: _weights(name, np.concatenate(parts), power) for name, parts in found.items()}


def _given(array: np.ndarray) -> torch.Tensor:
    """An input, so that whatever depends on it has a gradient."""
    tensor = to_tensor(array)
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def _mixture(output: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """A sum with random normal factors, each output relative to its spread.

    What all scores of one input share moves no class, so the factors of one input add up to 0.
    """
    noise = torch.randn(output.shape, generator=draws, dtype=output.dtype)
    if output.ndim > 1 and output.shape[1] > 1:
        noise -= noise.mean(1, keepdim=True)
    spread = output.detach().std() if output.numel() > 1 else output.new_ones(())
    return (output * noise).sum() / torch.clamp(spread, min=1e-12)


def _weights(name: str, squares: Floats, power: float) -> Floats:
    if not np.isfinite(squares).all():
        raise DataError(
            f"refit: the gradient at {name!r} is not finite; look at the data and the weights"
        )
    mean = max(float(squares.mean(dtype=np.float64)), 1e-30)
    weights = np.minimum(squares / mean, _MOST) ** power + _LEAST
    return np.asarray(weights / weights.mean(dtype=np.float64), np.float32)
