"""The rows of a data set as tensors: held in memory where they fit, else read ahead of time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import torch

from graphopt.data import Dataset, input_specs
from graphopt.data.inputs import batch_axes
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.lens.dtypes import to_tensor

__all__ = ["Rows", "ahead", "free_bytes", "placed"]

_T = TypeVar("_T")
_CHUNK = 256
_SHARE = 0.25
"""The part of the free memory that rows may take."""


_LIMITS = tuple(
    Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")
)
"""What a container may take, in cgroups of version 2 and 1; "max" if there is no limit."""


class Rows:
    """Rows of a data set by their position, as tensors in the order of a graph's inputs."""

    def __init__(self, dataset: Dataset, graph: Graph, device: torch.device) -> None:
        """`dataset` is bound to the graph's inputs."""
        self._dataset, self._device = dataset, device
        self._axes = batch_axes(input_specs(graph))
        unit = dataset.fixed_batch or 1
        if len(dataset) < unit:
            raise DataError(
                f"train: the model takes exactly {unit} rows at a time, {dataset.spec} has "
                f"{len(dataset)}; give at least {unit}"
            )
        self._first = self._fresh(np.arange(unit))
        self.in_memory = self._size_bytes() < _SHARE * free_bytes(device)
        self._held = self._all() if self.in_memory else ()
        labels = dataset.labels
        self._labels = None if labels is None else torch.from_numpy(labels.copy()).to(device)

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def shapes(self) -> list[torch.Size]:
        """The shape of each input for the fewest rows it takes."""
        return [tensor.shape for tensor in self._first]

    def read(self, places: npt.NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """The inputs at these positions."""
        if not self.in_memory:
            fresh = self._fresh(places)
            return tuple(tensor.to(self._device, non_blocking=True) for tensor in fresh)
        index = placed(places, self._device)
        return tuple(
            tensor if axis is None else tensor.index_select(axis, index)
            for tensor, axis in zip(self._held, self._axes.values(), strict=True)
        )

    def labels(self, places: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """The classes at these positions, if there are any."""
        if self._labels is None:
            return None
        return self._labels[placed(places, self._device)]

    def _fresh(self, places: npt.NDArray[np.int64]) -> list[torch.Tensor]:
        arrays = self._dataset.source.read(self._dataset.indices[places])
        return [to_tensor(arrays[name]) for name in self._axes]

    def _size_bytes(self) -> int:
        each = self._dataset.fixed_batch or 1
        total = sum(tensor.nbytes for tensor in self._first)
        return total * len(self._dataset) // each

    def _all(self) -> list[torch.Tensor]:
        """Every row, read in chunks."""
        parts: list[list[torch.Tensor]] = [[] for _ in self._axes]
        for start in range(0, len(self), _CHUNK):
            chunk = np.arange(start, min(start + _CHUNK, len(self)))
            for part, tensor in zip(parts, self._fresh(chunk), strict=True):
                part.append(tensor)
        return [
            (part[0] if axis is None else torch.cat(part, axis)).to(self._device)
            for part, axis in zip(parts, self._axes.values(), strict=True)
        ]


def placed(array: npt.NDArray[np.int64 | np.bool_], device: torch.device) -> torch.Tensor:
    """A small array on a device, without waiting for what the device is doing."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def free_bytes(device: torch.device) -> float:
    """The memory that is free on a device, for each process that trains on this host."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = float(psutil.virtual_memory().available)
    for limit in _LIMITS:
        with suppress(OSError, ValueError):
            free = min(free, float(limit.read_text()) - psutil.Process().memory_info().rss)
    return max(free, 0.0) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def ahead(items: Iterable[_T], depth: int = 2) -> Generator[_T, None, None]:
    """The same items, made by a thread of its own up to `depth` ahead; what it raises is raised."""
    source = iter(items)
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, source, None) for _ in range(depth))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(reader.submit(next, source, None))
            yield item
