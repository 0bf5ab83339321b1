"""Values of a graph's tensors over a data set: each computed from the nearest ones still held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph, bodies, part
from graphopt.runtime.observing import observe
from graphopt.runtime.session import Session

__all__ = ["Frontier", "finite"]

_BATCH = 32

_Values = dict[str, np.ndarray]


class Frontier:
    """Walks a data set through a graph whose weights change from front to back.

    What was asked for last is held, up to `limit` bytes, so that a walk over all layers runs
    each of them about once. Ask for a tensor only when nothing before it will change any more.
    """

    def __init__(
        self,
        graph: Graph,
        dataset: Dataset,
        *,
        limit: int = 1 << 30,
        batch: int = _BATCH,
        threads: int = 1,
    ) -> None:
        self.graph, self.dataset = graph, dataset
        self._limit, self._batch, self._threads = limit, batch, threads
        self._held: dict[str, list[np.ndarray]] = {}
        self._whole = bool(graph.functions) or any(
            next(iter(bodies(node)), None) is not None for node in graph.all_nodes()
        )

    def batches(self, names: Sequence[str]) -> Iterator[_Values]:
        """These tensors, batch by batch. Raises DataError for values that are not finite."""
        wanted = list(dict.fromkeys(names))
        missing = [name for name in wanted if name not in self._held]
        fresh: dict[str, list[np.ndarray]] | None = {name: [] for name in missing}
        size = 0
        for number, made in enumerate(self._computed(missing)):
            size += sum(array.nbytes for array in made.values())
            if fresh is not None and size <= self._limit:
                for name in missing:
                    fresh[name].append(made[name])
            else:
                fresh = None
            yield {n: made[n] if n in made else self._held[n][number] for n in wanted}
        if fresh:
            self._hold({n: a for n, a in fresh.items() if n not in self.graph.inputs}, wanted)

    def varied(self, graph: Graph, changed: Sequence[str]) -> Frontier:
        """A walk over a variant of the graph, which differs from these tensors on."""
        other = Frontier(graph, self.dataset, limit=0, batch=self._batch, threads=self._threads)
        reached = _reached(graph, changed)
        other._held = {name: held for name, held in self._held.items() if name not in reached}
        return other

    def forget_behind(self, names: Iterable[str]) -> None:
        """Hold nothing that depends on these any more, nor these."""
        self.forget(_reached(self.graph, names))

    def forget(self, names: Iterable[str]) -> None:
        """Hold these no more: what they are has changed."""
        for name in names:
            self._held.pop(name, None)

    def _hold(self, fresh: dict[str, list[np.ndarray]], wanted: Sequence[str]) -> None:
        """Keep what is new; what was used longest ago goes first."""
        for name in wanted:
            if name in self._held:
                self._held[name] = self._held.pop(name)
        self._held.update(fresh)
        sizes = {name: sum(a.nbytes for a in arrays) for name, arrays in self._held.items()}
        for name in list(self._held):
            if sum(sizes[held] for held in self._held) > self._limit:
                del self._held[name]

    def _computed(self, missing: Sequence[str]) -> Iterator[_Values]:
        if not missing:
            yield from ({} for _ in self.dataset.rows(self._batch))
            return
        if self._whole:
            yield from observe(
                self.graph, missing, self.dataset, batch_size=self._batch, threads=self._threads
            )
            return
        computed = [name for name in missing if name not in self.graph.inputs]
        sources = self._sources(computed)
        given = any(name in self.graph.inputs for name in (*sources, *missing))
        none: Iterator[_Values] = ({} for _ in self.dataset.rows(self._batch))
        with ExitStack() as loaded:
            session = None
            if computed:
                piece = part(self.graph, sources, computed)
                session = loaded.enter_context(Session.open(piece, threads=self._threads))
            for number, feeds in enumerate(self.dataset.batches(self._batch) if given else none):
                fed = {n: feeds[n] if n in feeds else self._held[n][number] for n in sources}
                found = session.run(fed) if session is not None else []
                made = {**feeds, **dict(zip(computed, found, strict=True))}
                yield {name: finite(name, made[name]) for name in missing}

    def _sources(self, missing: Sequence[str]) -> list[str]:
        """What is held or given that the missing tensors depend on first."""
        found: dict[str, None] = {}
        waiting, seen = list(missing), set(missing)
        while waiting:
            name = waiting.pop()
            maker = self.graph.producer(name)
            if name in self._held or name in self.graph.inputs:
                found[name] = None
            elif maker is not None:
                new = {tensor.name for tensor in maker.inputs if tensor.name} - seen
                seen |= new
                waiting.extend(sorted(new))
        return [name for name in found if self.graph.constant(name) is None]


def _reached(graph: Graph, names: Iterable[str]) -> set[str]:
    """These tensors and all that depend on them."""
    reached = set(names)
    for node in graph.nodes:
        if any(tensor.name in reached for tensor in node.inputs):
            reached.update(tensor.name for tensor in node.outputs)
    return reached


def finite(name: str, array: np.ndarray) -> np.ndarray:
    """The array, which must hold no NaN or infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            f"tensor {name!r} holds NaN or infinite values; "
            "look at the data and at the weights before it"
        )
    return array
