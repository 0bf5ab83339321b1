"""What is known of a graph's tensors before it runs: shapes, element types, integer values.

ONNX's inference sees the whole model once. Then one walk follows the integer values, which it
does not follow through every operator, and infers again each node that they make sharper, so
that a Reshape whose target is computed from a Shape ten nodes earlier has the shape it will have.
A dimension that only has a name is taken to be at least 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir import shapes
from graphopt.ir.convert import Exporter, values_of
from graphopt.ir.reading import INLINE_BYTES, Array
from graphopt.ir.scopes import Scopes, bodies
from graphopt.ir.shapes import Dims, TensorInfo
from graphopt.ir.values import EVALUATORS, Known, as_integers, evaluate, known_array

__all__ = ["Facts"]

Inputs = Sequence[Known | None]

_UNKNOWN = TensorInfo(None, None)


class Facts:
    """Facts about one graph, found on demand for what an edit has brought."""

    def __init__(
        self,
        scopes: Scopes,
        domains: Mapping[str, int],
        ir_version: int,
        infos: dict[str, TensorInfo],
        values: dict[str, Known | None],
    ) -> None:
        self._scopes = scopes
        self._domains = domains
        self._ir_version = ir_version
        self._infos = infos
        self._values = values

    @classmethod
    def of(cls, model: onnx.ModelProto, scopes: Scopes) -> Facts:
        """Infer a whole model, whose skeleton is `model` (and is changed)."""
        domains = {
            "" if entry.domain == "ai.onnx" else entry.domain: entry.version
            for entry in model.opset_import
        }
        facts = cls(scopes, domains, model.ir_version, shapes.infer_model(model), {})
        facts._sharpen(node for scope in scopes.walk() for node in scopes.nodes(scope))
        return facts

    def copy(self, scopes: Scopes) -> Facts:
        """The same facts about a copy of the graph."""
        return Facts(scopes, self._domains, self._ir_version, dict(self._infos), dict(self._values))

    def forget(self, names: Iterable[str]) -> None:
        """Drop what is known of tensors that are no longer what they were."""
        for name in names:
            self._infos.pop(name, None)
            self._values.pop(name, None)

    def info(self, name: str) -> TensorInfo:
        constant = self._constant(name)
        if constant is not None:
            return shapes.array_info(constant)
        if name not in self._infos:
            self._infos[name] = _UNKNOWN  # also ends a walk around a cycle
            node = self._producer(name)
            if node is not None:
                self._infos.update(self._infer(node))
        return self._infos[name]

    def known(self, name: str) -> Known | None:
        """What is known of a tensor's integer value."""
        constant = self._constant(name)
        if constant is not None:
            return known_array(constant)
        if name not in self._values:
            self._values[name] = None
            node = self._producer(name)
            if node is not None and node.outputs[0].name == name:
                self._values[name] = self._evaluate(node)
        return self._values[name]

    def _constant(self, name: str) -> Array | None:
        tensor = self._scopes.tensors.get(name)
        return values_of(tensor) if isinstance(tensor, gs.Constant) else None

    def _producer(self, name: str) -> gs.Node | None:
        tensor = self._scopes.tensors.get(name)
        return tensor.inputs[0] if tensor is not None and tensor.inputs else None

    # ---- integer values --------------------------------------------------------------------

    def _evaluate(self, node: gs.Node) -> Known | None:
        if node.domain not in (None, "", "ai.onnx"):
            return None
        if node.op in ("Shape", "Size"):
            return _measure(node, self.info(node.inputs[0].name).shape)
        if node.op not in EVALUATORS:
            return None
        inputs = [self.known(tensor.name) if tensor.name else None for tensor in node.inputs]
        if all(value is None for value in inputs):
            return None
        value, dtype = evaluate(node, inputs), self.info(node.outputs[0].name).dtype
        return value if value is not None and _can_hold(dtype, value) else None

    # ---- shapes ----------------------------------------------------------------------------

    def _sharpen(self, nodes: Iterable[gs.Node]) -> None:
        """Follow the values through all nodes, and infer again where they tell more."""
        fresh: set[str] = set()
        for node in nodes:
            names = [tensor.name for tensor in node.outputs if tensor.name]
            if not names:
                continue
            self._values.update(dict.fromkeys(names))
            if node.outputs[0].name:
                self._values[names[0]] = self._evaluate(node)
            if all(_is_static(self._infos.get(name)) for name in names):
                continue
            blank = any(self._infos.get(name, _UNKNOWN).shape is None for name in names)
            if (
                not blank
                and node.op not in _SHAPES
                and not any(
                    tensor.name in fresh or self._values.get(tensor.name) is not None
                    for tensor in node.inputs
                )
            ):
                continue  # blank: inference of a body does not see the constants around it
            for name, info in self._infer(node).items():
                old = self._infos.get(name, _UNKNOWN)
                merged = TensorInfo(info.dtype or old.dtype, _sharper(old.shape, info.shape))
                if merged != old:
                    self._infos[name] = merged
                    fresh.add(name)

    def _infer(self, node: gs.Node) -> dict[str, TensorInfo]:
        """Infer one node from what is known of its inputs."""
        if any(bodies(node)):
            return {}
        sources = [tensor.name for tensor in node.inputs if tensor.name]
        infos = {source: self.info(source) for source in sources}
        constants = {
            source: value for source in sources if (value := self._small(source)) is not None
        }
        proto = Exporter(self._domains, {}, {}).node(node)
        found = shapes.infer_node(proto, infos, constants, self._domains, self._ir_version)
        found = {name: info for name, info in found.items() if name}
        row = _SHAPES.get(node.op) if node.domain in (None, "", "ai.onnx") else None
        if row is not None and node.outputs[0].name in found:
            name = node.outputs[0].name
            inputs = [self.known(tensor.name) if tensor.name else None for tensor in node.inputs]
            shape = row(node, infos[sources[0]].shape, inputs)
            found[name] = TensorInfo(found[name].dtype, _sharper(found[name].shape, shape))
        return found

    def _small(self, name: str) -> Array | None:
        """The value of a constant, or of a tensor that might as well be one."""
        constant = self._constant(name)
        if constant is not None:
            return constant if constant.nbytes <= INLINE_BYTES else None
        numbers, dtype = as_integers(self.known(name)), self.info(name).dtype
        return None if numbers is None or dtype is None else numbers.astype(dtype)


def _measure(node: gs.Node, shape: Dims | None) -> Known | None:
    """The value of Shape or Size."""
    if shape is None:
        return None
    if node.op == "Size":
        sizes = [dim for dim in shape if isinstance(dim, int)]
        return np.array(math.prod(sizes), dtype=object) if len(sizes) == len(shape) else None
    picked = shape[int(node.attrs.get("start", 0)) : node.attrs.get("end", len(shape))]
    value = np.empty(len(picked), dtype=object)
    value[:] = picked
    return value


def _can_hold(dtype: np.dtype[np.generic] | None, value: Known) -> bool:
    """Whether arithmetic in this type gives these numbers, rather than others that wrap around."""
    kind = np.dtype(np.int64) if dtype is None else dtype
    if kind.kind not in "iub":
        return False
    low, high = (0, 1) if kind.kind == "b" else (np.iinfo(kind.name).min, np.iinfo(kind.name).max)
    return all(
        low <= entry <= high for entry in value.reshape(-1).tolist() if isinstance(entry, int)
    )


def _is_static(info: TensorInfo | None) -> bool:
    return (
        info is not None
        and info.shape is not None
        and all(isinstance(dim, int) for dim in info.shape)
    )


def _sharper(old: Dims | None, new: Dims | None) -> Dims | None:
    """Two true statements about one shape, as one."""
    if old is None or new is None or len(old) != len(new):
        return old if new is None else new
    return tuple(min(pair, key=_vagueness) for pair in zip(old, new, strict=True))


def _vagueness(dim: int | str | None) -> int:
    """Numbers say more than the model's own names, those more than names that inference made."""
    if isinstance(dim, int):
        return 0
    return 3 if dim is None else 2 if dim.startswith("unk__") else 1


def _reshaped(node: gs.Node, shape: Dims | None, inputs: Inputs) -> Dims | None:
    """The target of a Reshape, with copied dimensions copied and -1 computed where it can be."""
    target = inputs[1] if len(inputs) > 1 else None
    if target is None or target.ndim != 1:
        return None
    out: list[int | str | None] = list(target)
    if not node.attrs.get("allowzero", 0):
        copied = (*(shape or ()), *[None] * len(out))
        out = [copied[i] if dim == 0 else dim for i, dim in enumerate(out)]
    rest = [i for i, dim in enumerate(out) if dim is None or dim == -1]
    if len(rest) == 1 and shape is not None:
        out[rest[0]] = _quotient(shape, [dim for dim in out if dim not in (None, -1)])
    return tuple(None if dim == -1 else dim for dim in out)


def _quotient(shape: Dims, others: Sequence[int | str | None]) -> int | str | None:
    """The one size that is left of a shape when others are taken out; None if it has no name."""
    names = [dim for dim in shape if not isinstance(dim, int)]
    for name in (dim for dim in others if not isinstance(dim, int)):
        if name not in names:
            return None
        names.remove(name)
    total = math.prod(dim for dim in shape if isinstance(dim, int))
    taken = math.prod(dim for dim in others if isinstance(dim, int))
    if not names:
        return total // taken if taken else None
    return names[0] if len(names) == 1 and total == taken else None


def _padded(node: gs.Node, shape: Dims | None, inputs: Inputs) -> Dims | None:
    """The input's shape, where nothing is added."""
    given = node.attrs.get("pads", inputs[1] if len(inputs) > 1 else None)
    if shape is None or given is None or len(given) != 2 * len(shape) or len(inputs) > 3:
        return None
    pairs = zip(shape, given[: len(shape)], given[len(shape) :], strict=True)
    return tuple(dim if before == after == 0 else None for dim, before, after in pairs)


def _expanded(node: gs.Node, shape: Dims | None, inputs: Inputs) -> Dims | None:
    """The shape that a tensor and a target broadcast to."""
    target = inputs[1]
    if shape is None or target is None or target.ndim != 1:
        return None
    rank = max(len(shape), target.size)
    left = (1,) * (rank - len(shape)) + shape
    right = (1,) * (rank - target.size) + tuple(target)
    return tuple(
        b if a == 1 else a if b in (1, a) else _wider(a, b)
        for a, b in zip(left, right, strict=True)
    )


def _wider(a: int | str | None, b: int | str | None) -> int | None:
    """The size of two that are not known to be equal: a number over 1 wins."""
    numbers = [dim for dim in (a, b) if isinstance(dim, int)]
    return numbers[0] if numbers and numbers[0] > 1 else None


def _filled(node: gs.Node, shape: Dims | None, inputs: Inputs) -> Dims | None:
    return None if inputs[0] is None or inputs[0].ndim != 1 else tuple(inputs[0])


_SHAPES: Mapping[str, Callable[[gs.Node, Dims | None, Inputs], Dims | None]] = {
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Pad": _padded,
    "Reshape": _reshaped,
}
"""Operators through which ONNX's inference loses what is known of dynamic dimensions."""
