"""Two layers in a row and what is between them, as a function of the weights of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.func import functional_call

from graphopt.ir import Array, Graph, part
from graphopt.lens import LoweredModule, lower
from graphopt.refit.goals import Goal
from graphopt.refit.layers import Doubles, Layer
from graphopt.refit.solving import Moments

__all__ = ["Batch", "Block", "Matrices", "Value"]

Matrices = tuple[Doubles, Doubles]
"""One of each layer."""

_ROWS = 1 << 16
"""Rows that tell the second moments of what a layer reads well enough to be stepped by."""

_SLICE_BYTES = 64 << 20

_POWER_STEPS = 12


@dataclass(frozen=True, eq=False)
class Batch:
    """What the block reads, and what it should give."""

    read: tuple[Array, ...]
    aim: Array


@dataclass(frozen=True, eq=False)
class Value:
    """Half the sum of squares that is left, and how it falls along both matrices."""

    loss: float
    descent: Matrices


class Block:
    """Evaluates two layers in a row on inputs that are held."""

    def __init__(
        self,
        graph: Graph,
        layers: tuple[Layer, Layer],
        goal: Goal,
        batches: Sequence[Batch],
        seed: int,
    ) -> None:
        first, second = layers
        self.layers = layers
        self._graph, self._goal = graph, goal
        self._inputs = list(
            dict.fromkeys([first.data, *([goal.shortcut] if goal.shortcut else [])])
        )
        self._module = lower(part(graph, self._inputs, [goal.tensor, second.data]))
        self._last = lower(part(graph, [second.data], [second.output]))
        self._given = batches
        self._batches = [
            (
                tuple(torch.from_numpy(array) for array in batch.read),
                torch.from_numpy(batch.aim),
            )
            for batch in batches
        ]
        self._seed = seed

    def matrices(self) -> Matrices:
        first, second = self.layers
        return first.matrix(self._graph), second.matrix(self._graph)

    @property
    def energy(self) -> float:
        """Half the sum of squares of what the block should give."""
        total = 0.0
        for _, aim in self._batches:
            passed = aim if self._goal.passing is None else aim.clamp(*self._goal.passing)
            total += float(passed.double().square().sum()) / 2
        return total

    def value(self, matrices: Matrices) -> Value:
        """Loss and descent with these matrices; with a ReLU or clamp behind, of what passes it."""
        tensors = self._tensors(self._module, matrices)
        for tensor in tensors.values():
            tensor.requires_grad_()
        total = 0.0
        for read, aim in self._batches:
            made, _ = functional_call(self._module, tensors, read)
            left = aim - made
            if self._goal.passing is not None:
                low, high = self._goal.passing
                left = torch.where(aim <= low, (low - made).clamp(max=0), left)
                left = torch.where(aim >= high, (high - made).clamp(min=0), left)
            loss = left.square().sum() / 2
            loss.backward()
            total += float(loss.detach())
        return Value(total, self._descent(tensors))

    def moments(self, which: int, matrices: Matrices) -> Moments:
        """The second moments of what one of the layers reads, for all rows, from a part of them."""
        layer = self.layers[which]
        rng = np.random.default_rng(self._seed)
        columns = matrices[which].shape[1]
        found = Moments.empty(len(matrices[which]), columns, 0, bias=layer.has_bias)
        images = sum(len(batch.aim) for batch in self._given)
        count = -(-max(_ROWS, 16 * columns) // images)
        total = 0
        for array in self._read(which, matrices):
            per_image = min(count, math.prod(array.shape[2:]) or 1) * columns * layer.groups * 4
            size = max(1, _SLICE_BYTES // per_image)
            for start in range(0, len(array), size):
                some = array[start : start + size]
                rows = layer.rows(some, layer.places(some, count, rng))
                found.gram += rows.transpose(0, 2, 1) @ rows
                found.rows += rows.shape[1]
            total += len(array) * layer.count(array)
        found.gram *= total / found.rows
        return found

    def gain(self, matrices: Matrices) -> float:
        """The most by which the second layer lengthens a change of what it reads, squared."""
        tensors = self._tensors(self._last, matrices)
        read = next(iter(self._read(1, matrices)))[:1]
        vector = torch.from_numpy(
            np.random.default_rng(self._seed).standard_normal(read.shape).astype(np.float32)
        )
        with torch.no_grad():
            zero = functional_call(self._last, tensors, (torch.zeros_like(vector),))
        size = 0.0
        for _ in range(_POWER_STEPS):
            vector = (vector / vector.norm().clamp(min=1e-30)).requires_grad_()
            made = functional_call(self._last, tensors, (vector,)) - zero
            size = float(made.detach().square().sum())
            (vector,) = torch.autograd.grad(made.square().sum() / 2, vector)
        return size

    def _read(self, which: int, matrices: Matrices) -> Sequence[Array]:
        """What one of the layers reads, batch by batch."""
        if which == 0:
            return [batch.read[0] for batch in self._given]
        tensors = self._tensors(self._module, matrices)
        with torch.no_grad():
            return [
                functional_call(self._module, tensors, read)[1].numpy() for read, _ in self._batches
            ]

    def _tensors(self, module: LoweredModule, matrices: Matrices) -> dict[str, torch.Tensor]:
        """The weights of both layers by their paths in a module, as far as it has them."""
        arrays = {}
        for layer, matrix in zip(self.layers, matrices, strict=True):
            weight, bias = layer.parted(self._graph, matrix)
            arrays[layer.weight] = weight
            if bias is not None and layer.bias is not None:
                arrays[layer.bias] = bias
        return {
            path: torch.from_numpy(arrays[name])
            for path, name in module.binding.items()
            if name in arrays
        }

    def _descent(self, tensors: dict[str, torch.Tensor]) -> Matrices:
        slopes = {}
        for path, name in self._module.binding.items():
            if path in tensors:
                slope = tensors[path].grad
                assert slope is not None, "the error depends on the weights of both layers"
                slopes[name] = slope.numpy()
        first, second = (
            -layer.slopes(slopes[layer.weight], slopes.get(layer.bias or ""))
            for layer in self.layers
        )
        return first, second
