"""Integer values known without running the model: sizes, axes and the arithmetic between them.

A value is a numpy object array of ints and symbols. A symbol is the name of a dimension; None is
a number nothing is known about. So Shape -> Gather -> Concat -> Reshape is followed even where
the batch is dynamic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

__all__ = ["EVALUATORS", "Known", "as_integers", "evaluate", "known_array"]

Known = npt.NDArray[np.object_]
_Evaluator = Callable[[gs.Node, Sequence[Known | None]], Known | None]

LIMIT = 128
"""Arrays of more elements are weights or tables of indices, not shapes."""


def known_array(array: npt.NDArray[np.generic]) -> Known | None:
    """A constant as a value, None if it is not small and integer (or boolean)."""
    if array.size > LIMIT or array.dtype.kind not in "iub" or array.dtype == np.uint64:
        return None  # a large number without a sign fits no integer of shapes
    return np.array(array.tolist(), dtype=object).reshape(array.shape)


def as_integers(value: Known | None) -> npt.NDArray[np.int64] | None:
    """The value as integers, None if any element is not known."""
    if value is None or not all(isinstance(entry, int) for entry in value.flat):
        return None
    return np.array(value.tolist(), dtype=np.int64).reshape(value.shape)


def evaluate(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    """The value of a node's first output from its inputs' values; None if it is not known."""
    row = EVALUATORS.get(node.op)
    if row is None or node.domain not in (None, "", "ai.onnx"):
        return None
    try:
        value = row(node, inputs)
    except (ValueError, IndexError):
        return None  # a node that cannot run; ONNX Runtime says so better
    return value if value is None or value.size <= LIMIT else None


def _indices(value: Known | None) -> list[int] | None:
    numbers = as_integers(value)
    return None if numbers is None else [int(number) for number in numbers.reshape(-1)]


def _argument(
    node: gs.Node, inputs: Sequence[Known | None], position: int, key: str
) -> list[int] | None:
    """Axes and the like: an attribute in older operator sets, an input in newer ones."""
    if key in node.attrs:
        return list(node.attrs[key])
    return _indices(inputs[position]) if len(inputs) > position else None


def _gather(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    data, picks = inputs[0], as_integers(inputs[1])
    if data is None or picks is None or data.ndim == 0:
        return None
    axis = int(node.attrs.get("axis", 0))
    size = data.shape[axis]
    if picks.size and (picks.min() < -size or picks.max() >= size):
        return None
    return np.asarray(np.take(data, picks, axis=axis), dtype=object)


def _slice(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    data = inputs[0]
    starts, ends = (_argument(node, inputs, i, key) for i, key in ((1, "starts"), (2, "ends")))
    if data is None or starts is None or ends is None:
        return None
    given_axes, given_steps = len(inputs) > 3 or "axes" in node.attrs, len(inputs) > 4
    axes = _argument(node, inputs, 3, "axes") if given_axes else list(range(len(starts)))
    steps = _indices(inputs[4]) if given_steps else [1] * len(starts)
    if axes is None or steps is None:
        return None
    window = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        stop: int | None = end
        if step < 0:
            start = max(start, -size)  # where Python would take nothing
            stop = None if end < -size else end
        window[axis] = slice(start, stop, step)
    return data[tuple(window)]


def _concat(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    parts = [part for part in inputs if part is not None]
    if len(parts) != len(inputs) or any(part.ndim == 0 for part in parts):
        return None
    return np.concatenate(parts, axis=int(node.attrs.get("axis", 0)))


def _unsqueeze(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    axes = _argument(node, inputs, 1, "axes")
    if inputs[0] is None or axes is None:
        return None
    return np.expand_dims(inputs[0], tuple(axes))


def _squeeze(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    if inputs[0] is None:
        return None
    if "axes" not in node.attrs and len(inputs) < 2:
        return np.squeeze(inputs[0])
    axes = _argument(node, inputs, 1, "axes")
    return np.squeeze(inputs[0], tuple(axes)) if axes else None


_INTEGER_RANGES: Mapping[int, tuple[int, int]] = {
    onnx.TensorProto.INT64: (-(2**63), 2**63),
    onnx.TensorProto.INT32: (-(2**31), 2**31),
    onnx.TensorProto.BOOL: (0, 2),
}


def _cast(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    """Casts between wide integers only: to float, a division would no longer be integer."""
    target = int(node.attrs["to"])
    low, high = _INTEGER_RANGES.get(target, (0, 0))
    if inputs[0] is None or not high:
        return None
    entries = inputs[0].reshape(-1).tolist()
    numbers = [entry for entry in entries if isinstance(entry, int)]
    if target == onnx.TensorProto.BOOL and len(numbers) < len(entries):
        return None  # a size is no truth value
    return inputs[0] if all(low <= number < high for number in numbers) else None


def _same(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    return inputs[0]


def _reshape(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    data = inputs[0]
    target = _argument(node, inputs, 1, "shape")
    if data is None or target is None or 0 in target:
        return None
    if -1 in target and data.size % max(-math.prod(target), 1):
        return None
    return data.reshape(target)


def _binary(rule: Callable[[int, int], int]) -> _Evaluator:
    """Lift integer arithmetic; a symbol survives where the other side is neutral."""

    def row(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
        if len(inputs) != 2:
            return None
        left, right = inputs
        if left is None or right is None:
            return None
        pairs = np.broadcast(left, right)
        return _filled([_combine(rule, node.op, a, b) for a, b in pairs], left, right)

    return row


_NEUTRAL = {"Add": 0, "Div": 1, "Max": 0, "Mul": 1, "Sub": 0}


def _combine(rule: Callable[[int, int], int], op: str, a: object, b: object) -> object:
    if isinstance(a, int) and isinstance(b, int):
        return None if op in ("Div", "Mod") and b == 0 else rule(int(a), int(b))
    if op in _NEUTRAL and b == _NEUTRAL[op]:
        return a
    if op in ("Add", "Max", "Mul") and a == _NEUTRAL[op]:
        return b
    return None


def _divide(a: int, b: int) -> int:
    """Integer division as ONNX defines it: towards zero."""
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _compare(rule: Callable[[int, int], bool]) -> _Evaluator:
    """Lift a comparison; a dimension that only has a name equals itself and is not negative."""

    def compared(a: object, b: object) -> int | None:
        if isinstance(a, int) and isinstance(b, int):
            return int(rule(a, b))
        if isinstance(a, str) and a == b:
            return int(rule(0, 0))
        if isinstance(a, str) and isinstance(b, int) and b < 0:
            return int(rule(0, b))
        if isinstance(b, str) and isinstance(a, int) and a < 0:
            return int(rule(a, 0))
        return None

    def row(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
        left, right = inputs
        if left is None or right is None:
            return None
        return _filled([compared(a, b) for a, b in np.broadcast(left, right)], left, right)

    return row


def _filled(entries: Sequence[object], *like: Known) -> Known:
    """Entries in the shape that some values broadcast to."""
    out = np.empty(np.broadcast(*like).shape, dtype=object)
    out.reshape(-1)[:] = entries
    return out


def _where(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    condition, yes, no = inputs
    if condition is None or yes is None or no is None:
        return None
    entries = [
        (a if test else b) if isinstance(test, int) else a if a == b else None
        for test, a, b in np.broadcast(condition, yes, no)
    ]
    return _filled(entries, condition, yes, no)


def _not(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    value = as_integers(inputs[0])
    return None if value is None else np.array((1 - value).tolist(), dtype=object)


def _range(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    limits = [_indices(value) for value in inputs]
    if any(limit is None or len(limit) != 1 for limit in limits):
        return None
    start, stop, step = (limit[0] for limit in limits if limit is not None)
    if step == 0 or abs(stop - start) > LIMIT:
        return None
    return np.array(list(range(start, stop, step)), dtype=object)


def _constant_of_shape(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    shape = _indices(inputs[0])
    if shape is None or math.prod(shape) > LIMIT:
        return None
    value = node.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else np.asarray(value.values)
    if fill.dtype.kind not in "iub":
        return None
    return np.full(shape, int(fill.reshape(-1)[0]), dtype=object)


def _expand(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    shape = _indices(inputs[1])
    if inputs[0] is None or shape is None or math.prod(shape) > LIMIT:
        return None
    try:
        whole = np.broadcast_shapes(inputs[0].shape, tuple(shape))
    except ValueError:
        return None
    return np.broadcast_to(inputs[0], whole)


def _reduce(rule: Callable[[list[int]], int]) -> _Evaluator:
    """Lift a reduction of a whole vector."""

    def row(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
        value = as_integers(inputs[0])
        if value is None or value.ndim != 1 or not value.size:
            return None
        if node.attrs.get("noop_with_empty_axes", 0):
            return None
        keep = bool(node.attrs.get("keepdims", 1))
        return np.array([rule(value.tolist())] if keep else rule(value.tolist()), dtype=object)

    return row


def _mod(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    """The sign follows the divisor, as in Python; with `fmod` it would follow the dividend."""
    return None if node.attrs.get("fmod", 0) else _binary(lambda a, b: a % b)(node, inputs)


def _transpose(node: gs.Node, inputs: Sequence[Known | None]) -> Known | None:
    return None if inputs[0] is None else np.transpose(inputs[0], node.attrs.get("perm"))


EVALUATORS: Mapping[str, _Evaluator] = {
    "Add": _binary(lambda a, b: a + b),
    "And": _binary(lambda a, b: a & b),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(_divide),
    "Equal": _compare(lambda a, b: a == b),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _compare(lambda a, b: a > b),
    "GreaterOrEqual": _compare(lambda a, b: a >= b),
    "Identity": _same,
    "Less": _compare(lambda a, b: a < b),
    "LessOrEqual": _compare(lambda a, b: a <= b),
    "Max": _binary(max),
    "Min": _binary(min),
    "Mod": _mod,
    "Mul": _binary(lambda a, b: a * b),
    "Not": _not,
    "Or": _binary(lambda a, b: a | b),
    "Range": _range,
    "ReduceMax": _reduce(max),
    "ReduceMin": _reduce(min),
    "ReduceProd": _reduce(math.prod),
    "ReduceSum": _reduce(sum),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _binary(lambda a, b: a - b),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""One row per operator that shapes are computed with; Shape itself needs the graph."""
