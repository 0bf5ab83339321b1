"""Put BatchNormalization back behind layers that it was folded into."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.coupling.naming import matching_names
from graphopt.coupling.units import note_units
from graphopt.errors import DataError, ModelError, RecipeError
from graphopt.ir import Edit, Graph, NewNode, remade
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.rewrite.affine import constant_affine
from graphopt.rewrite.linear import LINEAR_OPS, linear_layer
from graphopt.rewrite.matching import is_op, sole_reader
from graphopt.runtime.moments import Moments
from graphopt.runtime.observing import batch_size_for, observe

__all__ = ["RestoreBatchNorm"]

_LEAST = 16
"""Fewer inputs say more of themselves than of the data."""

_LEAST_OPSET = 7
"""Before it, a flag told inference from training."""

_EPSILON = 1e-5
_LAYERS = (*LINEAR_OPS, "GRU", "LSTM", "RNN")


@dataclass(frozen=True)
class RestoreBatchNorm(Pass):
    """Put BatchNormalization back behind the layers that it was folded into; outputs stay equal.

    Deployed models have none left, and some methods (slimming, re-estimation) work on it. Behind
    every Conv, ConvTranspose and Gemm, its bias included and before its activation, comes one that
    normalises by the mean and variance measured on `samples` calibration inputs and undoes just
    that: scale = sqrt(variance + epsilon), shift = mean. Layers that have one keep it. The last
    layers before an output get none, nor do products of matrices with channels on another axis.

    `layers` are patterns of the weights' names, such as ["layer1.*", "!layer1.0.*"]; with "!" they
    are left alone. A last layer that a pattern names gets one too. `fold-batch-norm` is the way
    back.
    """

    name: ClassVar[str] = "restore-batch-norm"
    promise: ClassVar[Promise] = Promise.EXACT
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    layers: tuple[str, ...] = ()
    samples: int = 512

    def __post_init__(self) -> None:
        if self.samples < _LEAST:
            raise RecipeError(f"{self.name}: samples must be at least {_LEAST}, got {self.samples}")

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        if graph.opset < _LEAST_OPSET:
            raise ModelError(
                f"{self.name}: operator set {graph.opset} is too old; convert the model to "
                f"{_LEAST_OPSET} or newer"
            )
        data = inputs.take(self.samples)
        if len(data) < _LEAST:
            raise DataError(f"{self.name}: {len(data)} inputs are too few; give at least {_LEAST}")
        sums = self._sums(graph)
        moments = {entry.output: Moments(axis=1) for entry in sums}
        size, done = batch_size_for(graph, moments, data), 0
        for batch in observe(graph, list(moments), data, batch_size=size, threads=context.threads):
            for name, array in batch.items():
                moments[name].update(array)
            done += size
            context.progress("measuring statistics", min(1.0, done / len(data)))
        units = {}
        for entry in sums:
            edit = _normalised(graph, entry, moments[entry.output])
            name, scale = next(iter(edit.constants.items()))
            units[name] = float(scale.astype(np.float64).mean())
            graph.apply(edit)
        note_units(graph, units)
        context.notes["restored"] = [entry.output for entry in sums]

    def _sums(self, graph: Graph) -> list[_Sum]:
        """The sums to normalise, in order. Raises RecipeError for a pattern that names no layer."""
        sums = [found for node in graph.nodes if (found := _sum(graph, node)) is not None]
        names = [entry.weight for entry in sums]
        for pattern in self.layers:
            if not fnmatch.filter(names, pattern.removeprefix("!")):
                raise RecipeError(
                    f"{self.name}: layers: {pattern!r} names none that can be normalised; there "
                    f"are {', '.join(names) or 'none'}"
                )
        chosen = set(matching_names(names, self.layers))
        named = any(not pattern.startswith("!") for pattern in self.layers)
        inner = {entry.output for entry in sums} if named else _read_by_layers(graph)
        return [
            entry
            for entry in sums
            if entry.weight in chosen and entry.output in inner and _bare(graph, entry.output)
        ]


@dataclass(frozen=True)
class _Sum:
    """What a layer computes, with a bias that is added apart; its channels are on axis 1."""

    weight: str
    output: str
    dtype: np.dtype[np.generic]


def _sum(graph: Graph, node: gs.Node) -> _Sum | None:
    layer = linear_layer(graph, node)
    if layer is None or layer.rank is None or layer.channel_axis != 1 - layer.rank:
        return None
    if layer.weight.dtype not in (np.float16, np.float32, np.float64):
        return None
    last, after = node, sole_reader(graph, node, "Add")
    while after is not None and constant_affine(graph, after, layer.channel_axis) is not None:
        last, after = after, sole_reader(graph, after, "Add")
    return _Sum(str(node.inputs[1].name), str(last.outputs[0].name), layer.weight.dtype)


def _bare(graph: Graph, name: str) -> bool:
    """Whether no BatchNormalization reads it."""
    return not any(is_op(node, "BatchNormalization") for node in graph.consumers(name))


def _read_by_layers(graph: Graph) -> set[str]:
    """The tensors that a layer reads, directly or through others."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if is_op(node, *_LAYERS) or any(tensor.name in found for tensor in node.outputs):
            found.update(tensor.name for tensor in node.inputs)
    return found


def _normalised(graph: Graph, entry: _Sum, measured: Moments) -> Edit:
    """The node that makes a sum, and a normalisation behind it that changes nothing."""
    node = graph.producer(entry.output)
    assert node is not None, "a layer computes its sum"
    inner = graph.fresh(f"{entry.output}_folded")
    plain = replace(remade(node, {}), outputs=(inner,))
    mean, variance = (_rounded(x, entry.dtype) for x in (measured.mean, measured.variance))
    # In the model's own type, so that it divides by just what it multiplies with.
    scale = np.sqrt(variance + np.asarray(_EPSILON, entry.dtype))
    parts = ("scale", "shift", "mean", "variance")
    names = [graph.fresh(f"{entry.output}_bn_{part}") for part in parts]
    arrays = dict(zip(names, (scale, mean, mean.copy(), variance), strict=True))
    norm = NewNode(
        "BatchNormalization",
        (inner, *names),
        (entry.output,),
        {"epsilon": _EPSILON},
        name=f"{node.name or entry.output}_bn",
    )
    return Edit(remove=(node,), add=(plain, norm), constants=arrays)


def _rounded(values: npt.NDArray[np.float64], dtype: np.dtype[np.generic]) -> np.ndarray:
    """In the model's type; what half precision cannot hold is brought to the end of its range."""
    largest = float(np.finfo(dtype.name).max)
    return np.clip(values, -largest, largest).astype(dtype)
