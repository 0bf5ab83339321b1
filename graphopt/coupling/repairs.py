"""What besides weights depends on sizes: one row per operator that says its size anywhere.

A row looks at one node whose axes shrink and returns the inputs and attributes that change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.coupling.axes import Axes, Axis, Fixed, size_of
from graphopt.coupling.reshaping import is_copied
from graphopt.coupling.sizes import Sizes
from graphopt.coupling.wiring import Wiring
from graphopt.errors import EditError
from graphopt.ir import Array

__all__ = ["REPAIRS", "Change", "Shrunk"]


@dataclass(frozen=True)
class Change:
    """New constants for a node's inputs, by place, and new attributes (None: dropped)."""

    inputs: Mapping[int, Array] = field(default_factory=dict)
    attributes: Mapping[str, object | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Shrunk:
    """A node with its axes before the cut, and what is kept of each."""

    node: gs.Node
    wiring: Wiring
    sizes: Sizes
    keep: npt.NDArray[np.bool_]

    def axes(self, index: int) -> Axes:
        return self.wiring.axes[self.node.inputs[index].name] or ()

    def made(self, index: int = 0) -> Axes:
        return self.wiring.axes[self.node.outputs[index].name] or ()

    @property
    def touched(self) -> bool:
        """Whether anything is cut that the node reads or writes."""
        return any(
            self.cut(axis)
            for tensor in (*self.node.inputs, *self.node.outputs)
            if tensor.name
            for axis in self.wiring.axes.get(tensor.name) or ()
        )

    def mask(self, axis: Axis) -> npt.NDArray[np.bool_]:
        """Which indices of an axis are kept."""
        if isinstance(axis, Fixed):
            return np.ones(axis.size or 0, np.bool_)
        return self.keep[axis]

    def cut(self, axis: Axis) -> bool:
        return not isinstance(axis, Fixed) and not self.keep[axis].all()

    def size(self, axis: Axis) -> int:
        """How many indices are left."""
        return int(self.mask(axis).sum())

    def numbers(self, index: int, key: str) -> list[int] | None:
        if key in self.node.attrs:
            return [int(number) for number in self.node.attrs[key]]
        if index >= len(self.node.inputs) or not self.node.inputs[index].name:
            return None
        array = self.sizes.constant(self.node.inputs[index].name)
        return None if array is None else [int(number) for number in np.asarray(array).reshape(-1)]

    def put(self, index: int, key: str, numbers: list[int]) -> Change:
        """Write integers where they stood: in an attribute or in an input."""
        if key in self.node.attrs:
            return Change(attributes={key: numbers})
        return Change(inputs={index: np.array(numbers, np.int64)})


def _group(node: Shrunk, weight: int, width_axis: int) -> Change:
    """Depthwise: as many groups as input channels; otherwise groups only get narrower."""
    if int(node.node.attrs.get("group", 1)) == 1 or size_of(node.axes(weight)[width_axis]) != 1:
        return Change()
    return Change(attributes={"group": node.size(node.axes(0)[1])})


def convolution(node: Shrunk) -> Change:
    return _group(node, 1, 1)


def quantized_convolution(node: Shrunk) -> Change:
    return _group(node, 3, 1)


def reshape(node: Shrunk) -> Change:
    """Sizes are written out; computed ones become 0 where they are copied and else -1."""
    data, out = node.axes(0), node.made()
    if not any(node.cut(axis) for axis in out):
        return Change()
    if "shape" in node.node.attrs:
        target: list[int | None] = [int(size) for size in node.node.attrs["shape"]]
    else:
        target = node.sizes.target(node.node.inputs[1].name) or []
    literal = [-1 if element is None else element for element in target]
    several = target.count(None) + target.count(-1) > 1
    for place, element in enumerate(target):
        if element is None and several and is_copied(data, out, place):
            literal[place] = 0
        elif element is not None and element > 0 and node.cut(out[place]):
            literal[place] = node.size(out[place])
    change = node.put(1, "shape", literal)
    if 0 in literal and node.node.attrs.get("allowzero"):
        return Change(change.inputs, {**change.attributes, "allowzero": 0})
    return change


def expand(node: Shrunk) -> Change:
    """An axis that is not repeated is asked for as 1, which fits any size."""
    out = node.made()
    target = node.numbers(1, "")
    if target is None or not node.sizes.literal(node.node.inputs[1].name):
        return Change()
    lead = len(out) - len(target)
    literal = [1 if node.cut(out[lead + place]) else size for place, size in enumerate(target)]
    return Change() if literal == target else Change({1: np.array(literal, np.int64)})


def split(node: Shrunk) -> Change:
    axis = int(node.node.attrs.get("axis", 0))
    if not node.cut(node.axes(0)[axis]):
        return Change()
    sizes = [node.size(node.made(index)[axis]) for index in range(len(node.node.outputs))]
    if "split" in node.node.attrs or node.sizes.opset < 13:
        return Change(attributes={"split": sizes})
    return Change({1: np.array(sizes, np.int64)}, {"num_outputs": None})


def slices(node: Shrunk) -> Change:
    """Bounds are counted in kept indices."""
    starts, ends = node.numbers(1, "starts"), node.numbers(2, "ends")
    data, out = node.axes(0), node.made()
    if starts is None or ends is None:
        return Change()
    axes = node.numbers(3, "axes") or list(range(len(starts)))
    touched = False
    for number, axis in enumerate(axes):
        if not node.cut(data[axis]) or size_of(out[axis]) == size_of(data[axis]):
            continue
        mask = node.mask(data[axis])
        first = slice(starts[number], ends[number]).indices(len(mask))[0]
        starts[number] = int(mask[:first].sum())
        ends[number] = starts[number] + node.size(out[axis])
        touched = True
    if not touched:
        return Change()
    first_change, second = node.put(1, "starts", starts), node.put(2, "ends", ends)
    return Change(
        {**first_change.inputs, **second.inputs},
        {**first_change.attributes, **second.attributes},
    )


def gather(node: Shrunk) -> Change:
    """Indices of what is kept, counted in kept indices."""
    axis = node.axes(0)[int(node.node.attrs.get("axis", 0))]
    indices = node.sizes.constant(node.node.inputs[1].name)
    if not node.cut(axis) or indices is None:
        return Change()
    mask = node.mask(axis)
    place = np.cumsum(mask) - 1
    wanted = indices.astype(np.int64) % len(mask)
    kept = wanted[mask[wanted]] if wanted.ndim == 1 else wanted
    return Change({1: place[kept].astype(indices.dtype)})


def pad(node: Shrunk) -> Change:
    """Fewer new indices at either end."""
    amounts, data, out = node.numbers(1, "pads"), node.axes(0), node.made()
    if amounts is None or not any(node.cut(axis) for axis in out):
        return Change()
    axes = node.numbers(3, "axes") or list(range(len(data)))
    new = list(amounts)
    for number, axis in enumerate(axes):
        before, after = amounts[number], amounts[number + len(axes)]
        if node.cut(out[axis]) and (before or after):
            mask = node.mask(out[axis])
            new[number] = int(mask[:before].sum())
            new[number + len(axes)] = int(mask[len(mask) - after :].sum())
    return Change() if new == amounts else node.put(1, "pads", new)


def resize(node: Shrunk) -> Change:
    sizes, out = node.numbers(3, "sizes"), node.made()
    if not sizes or not any(node.cut(axis) for axis in out):
        return Change()
    new = [node.size(axis) if node.cut(axis) else s for axis, s in zip(out, sizes, strict=True)]
    return Change({3: np.array(new, np.int64)})


def recurrent(node: Shrunk) -> Change:
    return Change(attributes={"hidden_size": node.size(node.axes(2)[2])})


def group_norm(node: Shrunk) -> Change:
    """Fewer groups where whole ones went."""
    axis, groups = node.axes(0)[1], int(node.node.attrs["num_groups"])
    rows = node.mask(axis).reshape(groups, -1)
    whole = rows.all(axis=1)
    if (whole | ~rows.any(axis=1)).all():
        return Change(attributes={"num_groups": int(whole.sum())})
    if (rows != rows[0]).any():
        raise EditError(f"remove: the groups of {node.node.name!r} do not keep equally many")
    return Change()


def attention(node: Shrunk) -> Change:
    """The numbers of heads, where the heads are not an axis of their own."""
    if len(node.axes(0)) != 3:
        return Change()
    new = {}
    for index, key in ((0, "q_num_heads"), (1, "kv_num_heads")):
        axis, count = node.axes(index)[2], int(node.node.attrs[key])
        new[key] = node.size(axis) * count // (size_of(axis) or 1)
    return Change(attributes=new)


def projected_attention(node: Shrunk) -> Change:
    axis, count = node.axes(1)[1], int(node.node.attrs["num_heads"])
    change: dict[str, object | None] = {
        "num_heads": node.size(axis) * count // (size_of(axis) or 1)
    }
    if "qkv_hidden_sizes" in node.node.attrs:
        widths = [int(width) for width in node.node.attrs["qkv_hidden_sizes"]]
        parts = np.split(node.mask(axis), np.cumsum(widths)[:-1])
        change["qkv_hidden_sizes"] = [int(part.sum()) for part in parts]
    return Change(attributes=change)


def separate_attention(node: Shrunk) -> Change:
    axis, count = node.axes(0)[2], int(node.node.attrs["num_heads"])
    return Change(attributes={"num_heads": node.size(axis) * count // (size_of(axis) or 1)})


REPAIRS: Mapping[str, Callable[[Shrunk], Change]] = {
    "Attention": attention,
    "Conv": convolution,
    "ConvInteger": convolution,
    "ConvTranspose": convolution,
    "Expand": expand,
    "GRU": recurrent,
    "Gather": gather,
    "GroupNormalization": group_norm,
    "LSTM": recurrent,
    "Pad": pad,
    "QLinearConv": quantized_convolution,
    "RNN": recurrent,
    "Reshape": reshape,
    "Resize": resize,
    "Slice": slices,
    "Split": split,
    "com.microsoft:Attention": projected_attention,
    "com.microsoft:FusedConv": convolution,
    "com.microsoft:MultiHeadAttention": separate_attention,
}
"""An operator without a row says its sizes nowhere but in its weights."""
