"""What a row of the table sees of the node it lowers, and how it emits torch calls for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import fx, nn

from graphopt.errors import UnsupportedOp
from graphopt.ir import Array, Graph
from graphopt.lens.dtypes import carrier, to_tensor

__all__ = [
    "Bound",
    "Emitted",
    "Integers",
    "Numbers",
    "Operand",
    "Row",
    "Site",
    "Surroundings",
    "as_list",
]

Operand = fx.Node | int | float | bool
"""A value in the module being built: a tensor, or a Python number."""
Integers = tuple[int | fx.Node, ...] | fx.Node
"""Integers: some known now, some computed by the module; or all computed (a list)."""
Numbers = tuple[float, ...] | fx.Node
Emitted = fx.Node | tuple[fx.Node | None, ...]
"""What a row returns: the one output, or all of them (None for one that nobody reads)."""


@dataclass(frozen=True, eq=False)
class Bound:
    """A function with settings of its own, called like a function."""

    function: Callable[..., object]
    settings: Mapping[str, object]

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, *args: object) -> object:
        return self.function(*args, **self.settings)


class Surroundings(Protocol):
    """The module being built, as far as rows are concerned."""

    graph: Graph
    calls: fx.Graph

    def value(self, name: str) -> fx.Node:
        """The tensor of that name."""

    def dimension(self, symbol: str) -> fx.Node | None:
        """The size that a named dimension has at run time, if an input shows it."""

    def weight(self, name: str) -> torch.Tensor | None:
        """The one parameter or buffer of a constant; None if `name` is not constant."""

    def held(self, tensor: torch.Tensor) -> fx.Node:
        """A tensor that belongs to no constant, kept as a buffer."""

    def is_weight(self, name: str) -> bool:
        """Whether a constant is one that training changes."""

    def submodule(self, hint: str, module: nn.Module) -> str:
        """Add a module; return its name."""

    def bind(self, path: str, name: str) -> None:
        """Say that the tensor at `path` in the module is the constant `name`."""

    def body(self, scope: gs.Graph) -> tuple[fx.GraphModule, tuple[str, ...]]:
        """Lower a body; return it and the names of outer values it takes after its inputs."""


class Site:
    """One node with its attributes and operands."""

    def __init__(self, node: gs.Node, around: Surroundings) -> None:
        self.node = node
        self.around = around
        self.graph = around.graph
        self.op: str = node.op
        self.opset = around.graph.opset
        self.attributes: Mapping[str, object] = node.attrs

    # ---- attributes ------------------------------------------------------------------------

    def integer(self, key: str, default: int) -> int:
        value = self.attributes.get(key, default)
        assert isinstance(value, int | np.integer), f"{self.op}.{key} is an integer"
        return int(value)

    def number(self, key: str, default: float) -> float:
        value = self.attributes.get(key, default)
        assert isinstance(value, int | float | np.number), f"{self.op}.{key} is a number"
        return float(np.float32(value))

    def text(self, key: str, default: str) -> str:
        value = self.attributes.get(key, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        return bool(self.integer(key, int(default)))

    def integers(self, key: str) -> tuple[int, ...] | None:
        value = self.attributes.get(key)
        if value is None:
            return None
        assert isinstance(value, list | tuple | np.ndarray), f"{self.op}.{key} is a list"
        return tuple(int(entry) for entry in value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self.attributes.get(key)
        if value is None:
            return None
        assert isinstance(value, list | tuple), f"{self.op}.{key} is a list"
        return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in value)

    # ---- inputs and outputs ----------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.node.inputs)

    def name(self, position: int) -> str:
        """The name of an input, "" if it is omitted."""
        inputs = self.node.inputs
        return str(inputs[position].name) if position < len(inputs) else ""

    def has(self, position: int) -> bool:
        return bool(self.name(position))

    def wants(self, position: int) -> bool:
        """Whether anybody reads an output."""
        outputs = self.node.outputs
        return position < len(outputs) and bool(outputs[position].name)

    def arg(self, position: int) -> fx.Node:
        """A required input."""
        name = self.name(position)
        if not name:
            self.refuse(f"its input {position} is missing")
        return self.around.value(name)

    def optional(self, position: int) -> fx.Node | None:
        return self.arg(position) if self.has(position) else None

    def args(self) -> list[fx.Node]:
        return [self.arg(position) for position in range(len(self))]

    def constant(self, position: int) -> Array | None:
        name = self.name(position)
        return self.graph.constant(name) if name else None

    def rank(self, position: int) -> int | None:
        shape = self.graph.shape(self.name(position)) if self.has(position) else None
        return None if shape is None else len(shape)

    def dtype(self, position: int) -> np.dtype[np.generic] | None:
        return self.graph.dtype(self.name(position)) if self.has(position) else None

    def is_float(self, position: int) -> bool:
        return self.has(position) and self.graph.is_float(self.name(position))

    def out_dtype(self, position: int = 0) -> np.dtype[np.generic] | None:
        return self.graph.dtype(self.node.outputs[position].name)

    def torch_type(self, dtype: np.dtype[np.generic]) -> torch.dtype:
        found = carrier(dtype)
        if found is None:
            self.refuse(f"torch has nothing for elements of type {dtype}")
        return found

    def anchor(self) -> fx.Node | None:
        """A tensor on the module's device, if it has inputs."""
        names = self.graph.inputs
        return self.around.value(names[0]) if names else None

    # ---- inputs as Python numbers ----------------------------------------------------------

    def sizes(self, position: int, key: str = "") -> Integers | None:
        """Integers from the attribute `key`, or from an input; None if both are absent.

        Named dimensions become sizes of the module's inputs, so that no tensor is made for them.
        """
        given = self.integers(key) if key else None
        if given is not None or not self.has(position):
            return given
        known = self.graph.known(self.name(position))
        if known is not None:
            entries = [self._entry(entry) for entry in known.reshape(-1).tolist()]
            if None not in entries:
                return tuple(entry for entry in entries if entry is not None)
        array = self.constant(position)
        if array is not None:
            return tuple(int(entry) for entry in array.reshape(-1))
        return self.call(as_list, self.arg(position))

    def _entry(self, entry: object) -> int | fx.Node | None:
        if isinstance(entry, int):
            return int(entry)
        return self.around.dimension(entry) if isinstance(entry, str) else None

    def numbers(self, position: int, key: str = "") -> Numbers | None:
        """Floats from an attribute or an input; None if both are absent or the input is empty."""
        value = self.attributes.get(key) if key else self.constant(position)
        if isinstance(value, list | tuple | np.ndarray):
            return tuple(float(entry) for entry in np.asarray(value).reshape(-1)) or None
        return self.call(as_list, self.arg(position)) if self.has(position) else None

    def scalar(self, position: int) -> Operand | None:
        """One number: a Python number if it is constant; None if absent."""
        if not self.has(position):
            return None
        array = self.constant(position)
        if array is None or array.size != 1:
            return self.arg(position)
        return as_number(array)

    # ---- emitting --------------------------------------------------------------------------

    def call(self, function: Callable[..., object], *args: object, **kwargs: object) -> fx.Node:
        """Emit a call; arguments are operands, Python values, or tuples of both."""
        return self.around.calls.call_function(function, args, kwargs)  # type: ignore[arg-type]

    def bound(self, function: Callable[..., object], *args: object, **settings: object) -> fx.Node:
        """Emit a call whose keyword arguments are Python objects that code cannot spell."""
        return self.call(Bound(function, settings), *args)

    def module(self, module: nn.Module, *args: object) -> fx.Node:
        """Emit a call of a module of its own."""
        name = self.around.submodule(self.node.name or self.node.outputs[0].name, module)
        return self.around.calls.call_module(name, args)  # type: ignore[arg-type]

    def unpack(self, node: fx.Node, count: int) -> tuple[fx.Node | None, ...]:
        """Several outputs out of a call that gives a tuple."""
        outputs = len(self.node.outputs)
        return tuple(
            self.call(_item, node, index) if self.wants(index) else None
            for index in range(min(count, outputs))
        )

    def constant_tensor(self, array: Array) -> torch.Tensor:
        self.torch_type(array.dtype)
        return to_tensor(array)

    def refuse(self, reason: str) -> NoReturn:
        where = self.node.name or (self.node.outputs[0].name if self.node.outputs else "")
        raise UnsupportedOp(
            f"trainable view: {self.op} node {where!r} cannot be lowered to torch: {reason}; "
            f"passes that need gradients cannot run on this model, all others can"
        )


Row = Callable[[Site], Emitted]
"""One row of the table: lowers one node."""


def as_list(tensor: torch.Tensor) -> list[int | float]:
    """The elements of a small tensor as Python numbers."""
    elements: list[int | float] = tensor.reshape(-1).tolist()
    return elements


def as_number(array: Array) -> Operand:
    """The only element of an array."""
    element = array.reshape(-1)[0]
    kind = array.dtype.kind
    return bool(element) if kind == "b" else int(element) if kind in "iu" else float(element)


def _item(values: Sequence[object], index: int) -> object:
    return values[index]
