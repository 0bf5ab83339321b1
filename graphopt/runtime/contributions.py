"""What the channels of a family contribute to a layer that sums over them.

A layer's outputs are many; a few random mixtures of them with signs +1 and -1 have, in the mean,
the same products between the contributions of two channels as all outputs together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.cost import operator
from graphopt.coupling import Coupling, Family, Member
from graphopt.coupling.statistics import Reading
from graphopt.ir import Array, Graph
from graphopt.runtime.patches import convolution_patches, flat_rows

__all__ = ["Gathering", "readers"]

_MIXTURES = 16
_PLACES = 10
"""Places of a layer's output that are looked at for each input."""

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Layer:
    """How a kind of layer reads: the axis summed over, its rows, and its weight as a matrix.

    `matrix` gives the weight as (group, out, in channel of the group, kernel element).
    """

    axis: int
    rows: Callable[[gs.Node, Array, Array, np.random.Generator], _Floats]
    matrix: Callable[[gs.Node, Array], Array]


def _groups(node: gs.Node) -> int:
    return int(node.attrs.get("group", 1))


def _transposed(node: gs.Node, weight: Array) -> Array:
    """Each kernel element of an output channel is an output of its own here."""
    groups = _groups(node)
    columns = weight.reshape(groups, weight.shape[0] // groups, -1)
    return columns.transpose(0, 2, 1)[..., np.newaxis]


_LAYERS: Mapping[str, _Layer] = {
    "Conv": _Layer(
        1,
        lambda node, w, x, rng: convolution_patches(node, w.shape[2:], x, _PLACES, rng),
        lambda node, w: w.reshape(_groups(node), len(w) // _groups(node), w.shape[1], -1),
    ),
    "ConvTranspose": _Layer(
        1,
        lambda node, w, x, rng: flat_rows(np.moveaxis(x, 1, -1), _PLACES, rng),
        _transposed,
    ),
    "Gemm": _Layer(
        1,
        lambda node, w, x, rng: flat_rows(x, _PLACES, rng),
        lambda node, w: (w if node.attrs.get("transB") else w.T)[np.newaxis, ..., np.newaxis],
    ),
    "MatMul": _Layer(
        -1,
        lambda node, w, x, rng: flat_rows(x, _PLACES, rng),
        lambda node, w: w.T[np.newaxis, ..., np.newaxis],
    ),
}


def readers(coupling: Coupling, family: Family) -> list[tuple[gs.Node, Member]]:
    """Layers with constant weights that sum over a family, with the axis that they sum over."""
    found = []
    graph = coupling.graph
    for member in coupling.activations(family):
        for node in graph.consumers(member.tensor):
            layer = _LAYERS.get(operator(node))
            if layer is None or node.inputs[0].name != member.tensor or node.attrs.get("transA"):
                continue
            axes = coupling.axes(member.tensor) or ()
            weight = graph.constant(node.inputs[1].name)
            if weight is None or layer.axis % len(axes) != member.axis or not _sums(node, weight):
                continue
            found.append((node, member))
    return found


def _sums(node: gs.Node, weight: Array) -> bool:
    """Not a depthwise convolution, nor a product of stacks of matrices."""
    if node.op in ("Gemm", "MatMul"):
        return weight.ndim == 2
    channels = weight.shape[1] if node.op == "Conv" else weight.shape[0] // _groups(node)
    return _groups(node) == 1 or channels > 1


class Gathering:
    """Accumulates one layer's reading of a family, batch by batch."""

    def __init__(
        self, graph: Graph, node: gs.Node, member: Member, size: int, rng: np.random.Generator
    ) -> None:
        self._node, self._rng = node, rng
        self._layer = _LAYERS[operator(node)]
        weight = graph.constant(node.inputs[1].name)
        assert weight is not None, "only layers with constant weights are read"
        self._weight = weight
        self._size = size
        self._order = member.places[np.argsort(member.channels, kind="stable")]
        self._channels, self._starts = np.unique(np.sort(member.channels), return_index=True)
        self._gram = np.zeros((size, size))
        self._power: npt.NDArray[np.float64] | None = None
        self._rows = 0

    @property
    def tensor(self) -> str:
        return str(self._node.inputs[0].name)

    @property
    def samples(self) -> int:
        """How many sums of contributions have been seen."""
        return self._rows * _MIXTURES

    def update(self, data: Array) -> None:
        patches = self._layer.rows(self._node, self._weight, data, self._rng)
        patches = patches[:, self._order]
        mixed = self._mixtures()[self._order]
        parts = np.matmul(patches.transpose(1, 0, 2), mixed).reshape(len(self._order), -1)
        contributions = self._by_channel(parts)
        self._gram += contributions @ contributions.T
        power = np.einsum("nik,nik->ik", patches, patches)
        self._power = power if self._power is None else self._power + power
        self._rows += len(patches)

    def _mixtures(self) -> _Floats:
        """The weights of random mixtures of outputs: (in channel, kernel element, mixture)."""
        matrix = self._layer.matrix(self._node, self._weight).astype(np.float32, copy=False)
        signs = self._rng.choice(
            np.array([-1, 1], np.float32), (len(matrix), matrix.shape[1], _MIXTURES)
        )
        mixed: _Floats = np.einsum("goik,gof->gikf", matrix, signs, optimize=True)
        return mixed.reshape(-1, *mixed.shape[2:])

    def reading(self) -> Reading:
        matrix = self._layer.matrix(self._node, self._weight).astype(np.float32, copy=False)
        squares = np.einsum("goik,goik->gik", matrix, matrix).reshape(-1, matrix.shape[-1])
        assert self._power is not None, "a reading is of at least one batch"
        curvature = (squares[self._order] * self._power).sum(axis=1) / self._rows
        return Reading(
            self._node.name or self._node.outputs[0].name,
            self._gram / self.samples,
            self._by_channel(curvature).astype(np.float64),
        )

    def _by_channel(self, parts: _Floats) -> _Floats:
        """Sum over the places of each channel."""
        sums = np.zeros((self._size, *parts.shape[1:]), np.float32)
        sums[self._channels] = np.add.reduceat(parts, self._starts, axis=0)
        return sums
