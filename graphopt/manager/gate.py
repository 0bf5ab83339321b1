"""The gate: does a rewritten graph still compute what it promised, in ONNX Runtime?

Both graphs run without ONNX Runtime's own optimizer, so that only our rewriting is judged, on the
user's data if there are any, else on random inputs that the original accepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from graphopt.data import Dataset
from graphopt.errors import ModelError, RuntimeUnavailable
from graphopt.ir import Graph
from graphopt.passbase import Promise
from graphopt.runtime import Comparison, Session, compare, runnable_feeds

__all__ = ["TOLERANCES", "Gate", "Verdict"]

TOLERANCES: Mapping[Promise, float] = {Promise.EXACT: 1e-5, Promise.CUT: 1e-4}
"""Largest difference in units of the output's range for float32 (24 bits of mantissa): exact
passes reorder roundings, a cut also changes the length of every sum."""

_HALF_TOLERANCE = {np.dtype(np.float16): 1e-2, np.dtype(ml_dtypes.bfloat16): 5e-2}
"""The same for graphs that compute in half precision: about ten units in the last place."""

_ROUNDINGS = 16.0
"""How much more than rounding every input once exact rewriting may do: it rounds at each layer."""

_Values = list[dict[str, np.ndarray]]

_MOST_PROBES = 12
_PROBE_ELEMENTS = 2**16
"""Of a larger tensor every n-th element is compared."""

_SAMPLES = 4
"""How many of the user's inputs the gate runs."""


@dataclass(frozen=True)
class Verdict:
    """Whether a graph may stay. `reason` says what is wrong, or why nothing could be checked."""

    accepted: bool
    reason: str | None = None
    max_abs_diff: float | None = None


class Gate:
    """Compares graphs on fixed inputs; remembers what the last reference gave.

    Exact rewriting keeps the values of the tensors whose names it keeps, so a sample of them is
    compared besides the outputs: many networks hardly let their inputs show in their outputs.
    """

    def __init__(
        self, original: Graph, dataset: Dataset | None, *, seed: int, threads: int
    ) -> None:
        self._threads = threads
        self._outputs = original.outputs
        self._probes = _probes(original)
        self._half = max(
            (
                _HALF_TOLERANCE[dtype]
                for dtype in _float_types(original)
                if dtype in _HALF_TOLERANCE
            ),
            default=0.0,
        )
        self._unavailable: str | None = None
        self._feeds: list[dict[str, np.ndarray]] = []
        self._reference: tuple[Graph, int] | None = None
        self._values: _Values = []
        try:
            self._draw(original, dataset, seed)
        except RuntimeUnavailable as error:
            if dataset is not None:
                raise
            self._unavailable = f"not checked: {error}"

    def _draw(self, original: Graph, dataset: Dataset | None, seed: int) -> None:
        """Fix the inputs, and run the original on them."""
        with self._open(original) as session:
            if dataset is None:
                feeds = runnable_feeds(original, seed, session=session)
                self._feeds = [dict(feeds.arrays)]
                self._values = [self._named(session, feeds.outputs)]
            else:
                self._feeds = [dict(next(dataset.batches(_SAMPLES)))]
                self._values = [self._named(session, session.run(feeds)) for feeds in self._feeds]
        self._reference = (original, original.revision)

    @property
    def feeds(self) -> Sequence[Mapping[str, np.ndarray]]:
        """The inputs that are compared on; empty if the original cannot be run."""
        return self._feeds

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be run, if so."""
        return self._unavailable

    def check(self, reference: Graph, graph: Graph, promise: Promise) -> Verdict:
        """Judge `graph`, whose outputs must equal those of `reference` unless it is lossy."""
        try:
            graph.verify()
        except ModelError as error:
            return Verdict(accepted=False, reason=f"broken graph: {error}")
        if self._unavailable is not None:
            return Verdict(accepted=True, reason=self._unavailable)
        try:
            found = self._run(graph)
            if promise is Promise.LOSSY:
                return Verdict(accepted=True)
            wanted = self._wanted(reference)
        except RuntimeUnavailable as error:
            return Verdict(accepted=False, reason=str(error))
        names = list(self._outputs)
        if promise is Promise.EXACT:
            names += [probe for probe in self._probes if _comparable(probe, wanted, found)]
        return self._judge(reference, wanted, found, names, max(TOLERANCES[promise], self._half))

    def _judge(
        self,
        reference: Graph,
        wanted: _Values,
        found: _Values,
        names: Sequence[str],
        tolerance: float,
    ) -> Verdict:
        results = _compared(wanted, found, names)
        largest = max(result.max_abs for result in _compared(wanted, found, self._outputs))
        failed = next((result for result in results if not result.within(tolerance)), None)
        if failed is None or self._is_rounding(reference, wanted, results, names, tolerance):
            return Verdict(accepted=True, max_abs_diff=largest)
        return Verdict(False, _complaint(failed, tolerance), largest)

    def _is_rounding(
        self,
        reference: Graph,
        wanted: _Values,
        results: Sequence[Comparison],
        names: Sequence[str],
        tolerance: float,
    ) -> bool:
        """Whether the differences are what roundings of the inputs alone would do.

        Outputs that saturate (a detector that sees nothing) have next to no range of their own.
        """
        rng = np.random.default_rng(0)
        with self._open(reference) as session:
            moved = [
                self._named(session, session.run(_rounded(feeds, rng))) for feeds in self._feeds
            ]
        return all(
            difference.within(tolerance, absolute=_ROUNDINGS * allowed.max_abs)
            for result, noise in zip(results, _compared(wanted, moved, names), strict=True)
            for difference, allowed in zip(result.outputs, noise.outputs, strict=True)
        )

    def _wanted(self, reference: Graph) -> _Values:
        key = (reference, reference.revision)
        if self._reference != key:
            self._values, self._reference = self._run(reference), key
        return self._values

    def _run(self, graph: Graph) -> _Values:
        with self._open(graph) as session:
            return [self._named(session, session.run(feeds)) for feeds in self._feeds]

    def _named(self, session: Session, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """What a session has returned, by name: outputs whole, of probes a sample and the shape."""
        named = {}
        for port, value in zip(session.outputs, values, strict=True):
            if port.name in self._outputs:
                named[port.name] = value
            else:
                step = value.size // _PROBE_ELEMENTS + 1
                named[port.name] = value.reshape(-1)[::step].copy()
                named[_shape_of(port.name)] = np.array(value.shape)
        return named

    def _open(self, graph: Graph) -> Session:
        """A session that also returns the probes which the graph still computes."""
        probes = [name for name in self._probes if name in graph and graph.producer(name)]
        shown = graph.with_outputs([*self._outputs, *probes]) if probes else graph
        return Session.open(shown, threads=self._threads, optimize="none")


def _probes(graph: Graph) -> tuple[str, ...]:
    """Float tensors of the main scope, evenly spread; none if an output is not computed there."""
    computed = [
        tensor.name
        for node in graph.nodes
        for tensor in node.outputs
        if tensor.name and graph.is_float(tensor.name)
    ]
    if any(graph.producer(name) is None for name in graph.outputs):
        return ()
    hidden = [name for name in computed if name not in graph.outputs]
    places = np.linspace(0, len(hidden) - 1, min(_MOST_PROBES, len(hidden))).astype(int)
    return tuple(hidden[place] for place in np.unique(places))


def _comparable(name: str, wanted: _Values, found: _Values) -> bool:
    """Whether both graphs compute the tensor in one shape: its axes may have been reordered."""
    return all(
        name in a and name in b and np.array_equal(a[_shape_of(name)], b[_shape_of(name)])
        for a, b in zip(wanted, found, strict=True)
    )


def _shape_of(probe: str) -> str:
    """Under which name a probe's shape is kept; no tensor has it."""
    return f"{probe}\0shape"


def _compared(wanted: _Values, found: _Values, names: Sequence[str]) -> list[Comparison]:
    return [
        compare([a[name] for name in names], [b[name] for name in names], names)
        for a, b in zip(wanted, found, strict=True)
    ]


def _rounded(feeds: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The same inputs, each float moved by up to one unit in its last place."""
    return {
        name: np.nextafter(array, array + rng.choice([-1, 1], array.shape).astype(array.dtype))
        if array.dtype in (np.float32, np.float64)
        else array
        for name, array in feeds.items()
    }


def _complaint(result: Comparison, tolerance: float) -> str:
    worst = result.worst
    assert worst is not None, "a result outside the tolerance has a worst output"
    if worst.problem is not None:
        return f"tensor {worst.name!r}: {worst.problem}"
    if worst.mismatched:
        return f"tensor {worst.name!r}: {worst.mismatched} of {worst.elements} elements differ"
    return (
        f"tensor {worst.name!r}: differs by {worst.max_abs:.3g}, {worst.relative:.2g} of its range "
        f"(at most {tolerance:g})"
    )


def _float_types(graph: Graph) -> Iterator[np.dtype[np.generic]]:
    for node in graph.all_nodes():
        for tensor in node.outputs:
            dtype = graph.dtype(tensor.name) if tensor.name else None
            if dtype is not None:
                yield dtype
