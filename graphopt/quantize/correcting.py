"""Take the mean error of each quantized layer out of its bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from graphopt.data import Dataset
from graphopt.ir import Array, Graph
from graphopt.quantize.expecting import expect
from graphopt.quantize.references import Reference, noted_references
from graphopt.quantize.stored_layers import StoredLayer, find_stored_layers, write_bias
from graphopt.quantize.targets import Target, find_target
from graphopt.refit.frontier import Frontier
from graphopt.rewrite.affine import batch_norm
from graphopt.rewrite.linear import linear_layer
from graphopt.rewrite.matching import is_op

__all__ = ["Corrected", "correct_biases", "correct_by_statistics"]

Doubles = npt.NDArray[np.float64]

_HELD = 1 << 28
"""Bytes of tensors that are held of each network; what is not is computed again."""

_BATCH = 8
"""Larger batches are not faster, for the processor's caches, and take more memory."""


@dataclass
class Corrected:
    """For each layer the largest mean error of a channel, or why its bias was left alone.

    Where it was measured on inputs it is relative to the output's root mean square.
    """

    shifts: dict[str, float] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)


class _Means:
    """Mean and variance over all but the channel axis, batch by batch."""

    def __init__(self, axis: int) -> None:
        self._axis, self._count = axis, 0
        self._sum: Doubles = np.zeros(1)
        self._squares = 0.0

    def add(self, values: Array) -> None:
        others = tuple(axis for axis in range(values.ndim) if axis != self._axis % values.ndim)
        channels = values.shape[self._axis]
        self._sum = self._sum + values.sum(axis=others, dtype=np.float64)
        flat = values.reshape(-1)
        self._squares += float(np.dot(flat, flat)) / channels
        self._count += values.size // channels

    @property
    def mean(self) -> Doubles:
        return self._sum / self._count

    @property
    def power(self) -> float:
        return self._squares / self._count


def correct_biases(
    graph: Graph,
    original: Graph,
    dataset: Dataset,
    *,
    threads: int = 1,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Corrected:
    """Shift the bias of each layer with stored weights so that the means of its outputs stay.

    From front to back: a layer is measured with all before it corrected. Outputs are compared
    before the activation; where a shortcut is added before it, behind the sum.
    """
    made = Frontier(graph, dataset, limit=_HELD, batch=_BATCH, threads=threads)
    wanted = Frontier(original, dataset, limit=_HELD, batch=_BATCH, threads=threads)
    references = noted_references(graph)
    found = Corrected()
    layers = find_stored_layers(graph)
    for number, layer in enumerate(layers):
        progress(number / len(layers))
        name = layer.layer.output
        bias = layer.bias_values(graph)
        target = find_target(graph, original, references, layer)
        if bias is None or isinstance(target, str):
            found.left_alone[name] = "it has no bias" if isinstance(target, Target) else target
            continue
        shift, power = _mean_error(made, wanted, layer, *_compared(graph, original, layer, target))
        write_bias(graph, layer, bias + shift)
        made.forget_behind([name])
        found.shifts[name] = float(np.abs(shift).max() / max(np.sqrt(power), 1e-30))
    return found


def _compared(
    graph: Graph, original: Graph, layer: StoredLayer, target: Target
) -> tuple[str, Target]:
    """The tensors to compare: what the layer gives, or the sum with the shortcut it is added to.

    Means of shortcuts are off as well, which would add up from block to block.
    """
    name = layer.layer.output
    ours, theirs = _sum(graph, name), _sum(original, target.tensor)
    plain = not target.reference.divisors and (target.low, target.high) == (-math.inf, math.inf)
    if ours is None or theirs is None or not plain:
        return name, target
    shape = original.shape(target.tensor)
    if shape is None or original.shape(theirs) != shape or graph.shape(ours) != graph.shape(name):
        return name, target
    return ours, replace(target, tensor=theirs, reference=Reference(theirs, {}))


def _sum(graph: Graph, tensor: str) -> str | None:
    """The sum with another computed tensor that alone reads this one, rounding aside."""
    while len(readers := graph.consumers(tensor)) == 1 and tensor not in graph.outputs:
        (reader,) = readers
        tensor = str(reader.outputs[0].name)
        if is_op(reader, "Add"):
            computed = all(graph.constant(entry.name) is None for entry in reader.inputs)
            return tensor if computed else None
        if not is_op(reader, "QuantizeLinear", "DequantizeLinear"):
            return None
    return None


def _mean_error(
    made: Frontier, wanted: Frontier, layer: StoredLayer, name: str, target: Target
) -> tuple[Doubles, float]:
    """How much each channel is too low on average, and the mean square of the original."""
    axis = layer.layer.channel_axis
    ours, theirs = _Means(axis), _Means(axis)
    pairs = zip(made.batches([name]), wanted.batches([target.tensor]), strict=True)
    for found, original in pairs:
        ours.add(found[name])
        theirs.add(target.reference.of(original[target.tensor]))
    return theirs.mean - ours.mean, theirs.power


_ALIKE = 0.3
"""A stored weight that differs by more than this part from the original's is another one."""


def correct_by_statistics(graph: Graph, original: Graph) -> Corrected:
    """Shift biases by what the rounding of weights does to the expected input; needs no data.

    Expected inputs come from the statistics of BatchNormalization in the original. The border,
    where a convolution reads zeros, is taken as the rest.
    """
    known, references = expect(original), noted_references(graph)
    found = Corrected()
    for layer in find_stored_layers(graph):
        name, bias = layer.layer.output, layer.bias_values(graph)
        target = find_target(graph, original, references, layer)
        given = known.get(layer.layer.data)
        weight = None if isinstance(target, str) else _float_weight(original, target)
        stored = layer.matrix(layer.weight.values(graph))
        if bias is None or given is None:
            found.left_alone[name] = "it has no bias" if bias is None else "its input is not known"
        elif isinstance(target, str):
            found.left_alone[name] = target
        elif weight is None or not _alike(weight, stored):
            found.left_alone[name] = "the original's weight was another one"
        else:
            mean = np.repeat(given.mean.reshape(len(stored), -1), layer.layer.taps, axis=1)
            shift = np.einsum("goc,gc->go", weight - stored, mean).reshape(-1)
            write_bias(graph, layer, bias + shift)
            found.shifts[name] = float(np.abs(shift).max())
    return found


def _alike(weight: Doubles, stored: Doubles) -> bool:
    if weight.shape != stored.shape:
        return False
    return bool(np.linalg.norm(weight - stored) <= _ALIKE * np.linalg.norm(weight))


def _float_weight(original: Graph, target: Target) -> Doubles | None:
    """The weights that compute a tensor, with the BatchNormalization behind them folded.

    As (group, output, column).
    """
    maker = original.producer(target.tensor)
    if maker is None or target.reference.divisors:
        return None
    scale: Doubles = np.ones(1)
    if is_op(maker, "BatchNormalization"):
        change, before = batch_norm(original, maker), original.producer(maker.inputs[0].name)
        if change is None or isinstance(change, str) or before is None:
            return None
        maker, scale = before, change.scale
    linear = linear_layer(original, maker)
    if linear is None or is_op(maker, "ConvTranspose"):
        return None
    spread = linear.along(np.broadcast_to(scale, (linear.outputs,)), outputs=True)
    weight = linear.weight.astype(np.float64) * linear.factor * spread
    weight = weight if linear.outputs_first else weight.T
    return np.asarray(weight.reshape(linear.groups, linear.outputs // linear.groups, -1))
