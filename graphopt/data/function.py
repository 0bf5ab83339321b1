"""Data that a function of the user's returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from graphopt.data.arrays import LABELS, ArraySource, without_labels
from graphopt.data.dataset import Dataset
from graphopt.data.inputs import InputSpec, batch_axes, check_arrays
from graphopt.data.ragged import RaggedSource
from graphopt.data.userfile import load_function, user_code
from graphopt.errors import DataError

__all__ = ["read_function"]

Arrays = dict[str, np.ndarray]


def read_function(text: str, inputs: Sequence[InputSpec] | None, limit: int | None) -> Dataset:
    """Call file.py:function without arguments and take what it returns.

    It may return a Dataset; a mapping from input names to arrays, with `labels` if there are any;
    an array, where the model has one input; a pair (mapping or array, labels); or an iterable of
    such mappings, arrays or pairs: batches, or single samples that lack the batch axis. Batches
    are collected in memory, up to `limit` rows; a Dataset or memory-mapped arrays need not be.
    Where they differ in shape rows are read one at a time.
    """
    function = load_function(text, "data")
    with user_code(text, "data"):
        result = function()
        if isinstance(result, Dataset):
            return _fitting(result, inputs, text)
        if isinstance(result, Iterable) and not isinstance(result, Mapping | np.ndarray | tuple):
            parts = _collect(result, inputs, limit, text)
        else:
            parts = [_named(result, inputs, text)]
    named = [without_labels(part, inputs) for part in parts]
    sources = [ArraySource.of(*part, where=text, inputs=inputs) for part in named]
    if len(sources) == 1:
        return Dataset.of(sources[0], text)
    return Dataset.of(RaggedSource(tuple(sources)), text, alone=True)


def _fitting(found: Dataset, inputs: Sequence[InputSpec] | None, text: str) -> Dataset:
    if inputs is None:
        return found
    bound = found.bind(inputs)
    check_arrays(bound.source.read(bound.indices[:1]), inputs, text)
    return bound


def _named(item: object, inputs: Sequence[InputSpec] | None, text: str) -> Arrays:
    """One returned thing as arrays by name, labels among them."""
    if isinstance(item, tuple):
        if len(item) != 2:
            raise DataError(
                f"data: {text} gave a tuple of {len(item)}; give (inputs, labels) or a mapping"
            )
        return {**_named(item[0], inputs, text), LABELS: np.asarray(item[1])}
    if isinstance(item, Mapping):
        return {str(name): _array(value, text) for name, value in item.items()}
    if inputs is not None and len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise DataError(
            f"data: {text} gave one unnamed array, the model has {len(inputs)} inputs; give a "
            f"mapping with {names}"
        )
    return {inputs[0].name if inputs else "input": _array(item, text)}


def _array(value: object, text: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "O" and not all(isinstance(item, str) for item in array.flat):
        raise DataError(
            f"data: {text} gave a {type(value).__name__}, which is no array of numbers; give numpy "
            f"arrays"
        )
    return array


def _collect(
    items: Iterable[object], inputs: Sequence[InputSpec] | None, limit: int | None, text: str
) -> list[Arrays]:
    """All items as one, or each by itself where they differ in shape."""
    axes = batch_axes(inputs or ())
    parts: list[Arrays] = []
    rows = 0
    for item in items:
        part = _batched(_named(item, inputs, text), inputs)
        parts.append(part)
        if parts[0].keys() != part.keys():
            raise DataError(
                f"data: {text} gave {sorted(parts[0])} first and {sorted(part)} in item "
                f"{len(parts)}; give the same names each time"
            )
        rows += _rows(part, axes)
        if limit is not None and rows >= limit:
            break
    if not parts:
        raise DataError(f"data: {text} gave nothing; give at least one batch")
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    if not all(_alike(arrays, axes.get(name, 0)) for name, arrays in columns.items()):
        return parts
    return [{name: _joined(arrays, axes.get(name, 0)) for name, arrays in columns.items()}]


def _rows(part: Arrays, axes: Mapping[str, int | None]) -> int:
    for name, array in part.items():
        axis = axes.get(name, 0)
        if axis is not None and axis < array.ndim:
            return int(array.shape[axis])
    return 1


def _batched(part: Arrays, inputs: Sequence[InputSpec] | None) -> Arrays:
    """Give a single sample its batch axis."""
    ranks = {spec.name: len(spec.shape) for spec in inputs or () if spec.shape}
    alone = any(array.ndim == ranks.get(name, 0) - 1 for name, array in part.items())
    if not alone:
        return part
    return {name: array[None] for name, array in part.items()}


def _alike(arrays: list[np.ndarray], axis: int | None) -> bool:
    """Whether arrays differ along this axis alone."""
    if axis is None:
        return True
    return len({array.shape[:axis] + array.shape[axis + 1 :] for array in arrays}) == 1


def _joined(arrays: list[np.ndarray], axis: int | None) -> np.ndarray:
    whole = axis is None or arrays[0].ndim == 0
    return arrays[0] if whole else np.concatenate(arrays, axis=axis)
