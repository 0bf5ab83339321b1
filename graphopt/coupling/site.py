"""A node as a rule sees it: the axes it reads, the sizes it writes, the record it adds to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.coupling.axes import Axes, Axis, Fixed, Unfit, size_of
from graphopt.coupling.sizes import Sizes
from graphopt.coupling.wiring import Wiring
from graphopt.ir import Array

__all__ = ["Rule", "Site", "label"]


def label(node: gs.Node) -> str:
    """How a node is called in messages."""
    name = node.name or next((tensor.name for tensor in node.outputs if tensor.name), "?")
    return f"{node.op} {name!r}"


class Site:
    """One node, its tensors' axes, and the wiring."""

    def __init__(self, node: gs.Node, wiring: Wiring, sizes: Sizes) -> None:
        self.node = node
        self.wiring = wiring
        self.sizes = sizes
        self.name = label(node)

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and bool(self.node.inputs[index].name)

    def axes(self, index: int) -> Axes:
        """The axes of an input; raises Unfit where not even their number is known."""
        axes = self.axes_of(self.node.inputs[index].name)
        if axes is None:
            raise Unfit(f"the rank of {self.node.inputs[index].name!r} is not known")
        return axes

    def axes_of(self, name: str) -> Axes | None:
        known = self.wiring.axes
        if name not in known:
            array = self.sizes.constant(name)
            assert array is not None, f"{name!r} is read before it is produced"
            known[name] = tuple(self._of_constant(array, size) for size in array.shape)
        return known[name]

    def _of_constant(self, array: Array, size: int) -> Axis:
        """Atoms for what holds weights; a single index, or one of a table of sizes, stays."""
        if size < 2:
            return self.fixed(size, "has a single index of it", quiet=True)
        if array.dtype.kind == "b" or array.dtype == np.int64:
            return self.fixed(size, "computes sizes with it", quiet=True)
        return self.wiring.fresh(size)

    def constant(self, index: int) -> Array | None:
        """The value of an input, if it is known before the model runs."""
        return self.sizes.constant(self.node.inputs[index].name) if self.has(index) else None

    def literal(self, index: int) -> bool:
        """Whether an input is a constant of the graph itself, so that a repair can replace it."""
        return self.has(index) and self.sizes.literal(self.node.inputs[index].name)

    def attribute(self, key: str, default: int) -> int:
        return int(self.node.attrs.get(key, default))

    def numbers(self, index: int, key: str) -> list[int] | None:
        """Integers that are an attribute in older operator sets and an input in newer ones."""
        if key in self.node.attrs:
            return [int(number) for number in self.node.attrs[key]]
        array = self.constant(index)
        return None if array is None else [int(number) for number in np.asarray(array).reshape(-1)]

    def shape(self, index: int = 0) -> tuple[int | None, ...]:
        """The sizes of an output; raises Unfit where not even the rank is known."""
        shape = self.sizes.shape(self.node.outputs[index].name)
        if shape is None:
            raise Unfit("the shape of its output is not known")
        return shape

    def fixed(self, size: int | None, reason: str, *, quiet: bool = False) -> Fixed:
        return Fixed(size, self.name, reason, quiet)

    def pin(self, axis: Axis, reason: str, *, quiet: bool = False) -> None:
        self.wiring.pin(axis, self.fixed(size_of(axis), reason, quiet=quiet))

    def held(self, sizes: Sequence[int | None], reason: str, *, quiet: bool = False) -> Axes:
        """Axes that this node makes and that nothing can be removed from."""
        return tuple(self.fixed(size, reason, quiet=quiet) for size in sizes)

    def broadcast(self, operands: Sequence[Axes]) -> Axes:
        """Align axes from the right; equal ones tie, one of size 1 ties nothing."""
        rank = max(len(axes) for axes in operands)
        return tuple(
            self._meet([axes[place] for axes in operands if len(axes) >= -place])
            for place in range(-rank, 0)
        )

    def _meet(self, axes: Sequence[Axis]) -> Axis:
        wide = [axis for axis in axes if size_of(axis) != 1]
        if not wide:
            return axes[0] if len(axes) == 1 else self._single(axes)
        for axis in axes:
            if size_of(axis) == 1:
                self.pin(axis, "is broadcast along it")
        met = wide[0]
        for axis in wide[1:]:
            met = self.wiring.tie(met, axis)
        return met

    def _single(self, axes: Sequence[Axis]) -> Axis:
        for axis in axes:
            self.pin(axis, "combines it with single values")
        return self.fixed(1, "combines it with single values", quiet=True)


Rule = Callable[[Site], Sequence[Axes | None]]
"""Ties a node's axes and returns those of its outputs, None where it cannot tell."""

Rules = Mapping[str, Rule]
