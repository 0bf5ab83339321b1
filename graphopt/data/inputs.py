"""What a model takes, and whether given arrays fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.data.wording import did_you_mean
from graphopt.errors import DataError
from graphopt.ir import Graph

__all__ = ["InputSpec", "batch_axes", "check_arrays", "fixed_batch", "input_specs"]

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class InputSpec:
    """One input of a model; a dimension is a size, a symbol, or None where nothing is known."""

    name: str
    shape: Shape | None
    dtype: np.dtype

    def sizes(self) -> tuple[int | str | None, ...] | None:
        """The shape with the sizes that exporters write for "unknown" (0, -1) as None."""
        if self.shape is None:
            return None
        return tuple(None if isinstance(d, int) and d < 1 else d for d in self.shape)


def input_specs(graph: Graph) -> tuple[InputSpec, ...]:
    """What a graph takes, for the data to be shaped after.

    Raises DataError for an input that is not a tensor.
    """
    specs = []
    for name in graph.inputs:
        dtype = graph.dtype(name)
        if dtype is None:
            raise DataError(f"input {name!r}: is not a tensor, so no data can be given for it")
        specs.append(InputSpec(name, graph.shape(name), dtype))
    return tuple(specs)


def batch_axes(inputs: Sequence[InputSpec]) -> dict[str, int | None]:
    """The axis along which rows are stacked, for each input; None for one that is passed whole.

    That is axis 0, or the axis that carries the same symbol (the state of a recurrent network is
    often (2, batch, 128)). Beside a dynamic batch, an input of fixed size belongs to no row.
    """
    leading = [sizes[0] for spec in inputs if (sizes := spec.sizes())]
    symbols = {d for d in leading if isinstance(d, str)}
    dynamic = any(not isinstance(d, int) for d in leading)
    first = leading[0] if leading else None
    return {spec.name: _batch_axis(spec.sizes(), symbols, None if dynamic else first)
            for spec in inputs}  # fmt: skip


def _batch_axis(sizes: Shape | None, symbols: set[str], fixed: int | str | None) -> int | None:
    if sizes is None:
        return 0
    if not sizes:
        return None
    if not isinstance(sizes[0], int) or sizes[0] == fixed:
        return 0
    return next((axis for axis, size in enumerate(sizes) if size in symbols), None)


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """The batch size a model insists on, or None where it takes any."""
    axes = batch_axes(inputs)
    for spec in inputs:
        sizes, axis = spec.sizes(), axes[spec.name]
        if sizes and axis is not None:
            size = sizes[axis]
            return size if isinstance(size, int) else None
    return None


def check_arrays(arrays: Mapping[str, np.ndarray], inputs: Sequence[InputSpec], where: str) -> None:
    """Refuse arrays whose names, dtypes or shapes are not what the inputs take."""
    _check_names(list(arrays), [spec.name for spec in inputs], where)
    axes = batch_axes(inputs)
    for spec in inputs:
        _check_array(arrays[spec.name], spec, axes[spec.name], where)


def _check_names(found: list[str], wanted: list[str], where: str) -> None:
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if extra:
        hint = did_you_mean(extra[0], missing or wanted)
        raise DataError(
            f"data: {where} has an array {extra[0]!r}, which is no input of the model; "
            f"its inputs are {', '.join(map(repr, wanted))}{hint}"
        )
    if missing:
        raise DataError(
            f"data: {where} has no array {missing[0]!r}, which the model takes; it has "
            f"{', '.join(map(repr, found)) or 'none'}: name each array after its input"
        )


def _check_array(array: np.ndarray, spec: InputSpec, axis: int | None, where: str) -> None:
    text = spec.dtype.kind == "O" and array.dtype.kind == "U"
    if array.dtype != spec.dtype and not text:
        raise DataError(
            f"data: input {spec.name!r} takes {spec.dtype}, {where} has {array.dtype}; "
            f"convert the array with .astype({spec.dtype.name!r})"
        )
    sizes = spec.sizes()
    if sizes is None:
        return
    fits = len(sizes) == array.ndim and all(
        not isinstance(size, int) or at == axis or size == array.shape[at]
        for at, size in enumerate(sizes)
    )
    if not fits:
        shown = ("N" if at == axis else "?" if d is None else d for at, d in enumerate(sizes))
        raise DataError(
            f"data: input {spec.name!r} takes shape ({', '.join(map(str, shown))}), {where} has "
            f"({', '.join(map(str, array.shape))}); reshape or transpose the array"
        )
