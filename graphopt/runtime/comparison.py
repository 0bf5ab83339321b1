"""How far two models' outputs lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Comparison", "Difference", "compare"]


@dataclass(frozen=True)
class Difference:
    """One output of B against the same output of A, the reference.

    `relative` is `max_abs` over the output's scale: the larger of A's range (max - min) and its
    largest magnitude. The errors are taken over the elements that are finite in both. `mismatched`
    counts elements of which just one is NaN or infinite, or both in different ways; in integer,
    boolean and string outputs it counts every element that differs (one flipped ArgMax is one
    element). `problem` says why values could not be compared at all.
    """

    name: str
    elements: int
    exact: bool
    max_abs: float
    mean_abs: float
    relative: float
    sqnr_db: float
    mismatched: int
    problem: str | None = None

    def within(self, tolerance: float, *, absolute: float = 0.0, flips: float = 0.0) -> bool:
        """Whether the relative error is small enough, or the largest error below `absolute`.

        Outputs that are exact by nature may have a fraction of `flips` differing elements instead.
        """
        if self.problem is not None:
            return False
        if self.exact:
            return self.mismatched <= flips * self.elements
        small = self.relative <= tolerance or self.max_abs <= absolute
        return self.mismatched == 0 and small


@dataclass(frozen=True)
class Comparison:
    """All outputs; a sequence or a map has one entry per element, named `output[i]`."""

    outputs: tuple[Difference, ...]

    @property
    def max_abs(self) -> float:
        return max((output.max_abs for output in self.outputs), default=0.0)

    @property
    def relative(self) -> float:
        return max((output.relative for output in self.outputs), default=0.0)

    @property
    def sqnr_db(self) -> float:
        """The worst output's signal-to-noise ratio; infinite if all are equal."""
        return min((output.sqnr_db for output in self.outputs), default=math.inf)

    @property
    def mismatched(self) -> int:
        return sum(output.mismatched for output in self.outputs)

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(f"{o.name}: {o.problem}" for o in self.outputs if o.problem is not None)

    @property
    def identical(self) -> bool:
        return not self.problems and self.mismatched == 0 and self.max_abs == 0

    @property
    def worst(self) -> Difference | None:
        """The output that is furthest off, unless nothing is."""
        if self.identical:
            return None
        return max(
            self.outputs, key=lambda o: (o.problem is not None, o.mismatched > 0, o.relative)
        )

    def within(self, tolerance: float, *, absolute: float = 0.0, flips: float = 0.0) -> bool:
        """Whether every output is."""
        return all(o.within(tolerance, absolute=absolute, flips=flips) for o in self.outputs)


def compare(
    a_outputs: Sequence[np.ndarray], b_outputs: Sequence[np.ndarray], names: Sequence[str]
) -> Comparison:
    """Compare B's outputs with A's, which are the reference; both in the order of `names`."""
    if len(a_outputs) != len(b_outputs):
        problem = f"{len(a_outputs)} outputs against {len(b_outputs)}"
        return Comparison((_incomparable("outputs", problem),))
    triples = zip(names, a_outputs, b_outputs, strict=True)
    return Comparison(tuple(d for name, a, b in triples for d in _output(name, a, b)))


def _output(name: str, a: np.ndarray, b: np.ndarray) -> Iterator[Difference]:
    if _is_collection(a) and _is_collection(b):
        if len(a) != len(b):
            yield _incomparable(name, f"{len(a)} elements against {len(b)}")
            return
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _output(f"{name}[{index}]", np.asarray(one), np.asarray(other))
    elif a.dtype != b.dtype:
        yield _incomparable(name, f"type {a.dtype} against {b.dtype}")
    elif a.shape != b.shape:
        yield _incomparable(name, f"shape {a.shape} against {b.shape}")
    elif a.dtype.kind in "biuOUST":
        yield _exact(name, a, b)
    else:
        yield _inexact(name, a, b)


def _is_collection(array: np.ndarray) -> bool:
    """Whether it stands for a sequence or a map (see Session), not for strings."""
    return array.dtype == object and all(isinstance(element, np.ndarray) for element in array.flat)


def _incomparable(name: str, problem: str) -> Difference:
    return Difference(name, 0, False, math.inf, math.inf, math.inf, -math.inf, 0, problem)


def _exact(name: str, a: np.ndarray, b: np.ndarray) -> Difference:
    differing = int(np.count_nonzero(a != b))
    if a.dtype.kind not in "biu":
        size = float(differing > 0)
        return Difference(name, a.size, True, size, size, size, _ratio_db(1, size), differing)
    return _numbers(name, a.astype(np.float64), b.astype(np.float64), differing, exact=True)


def _inexact(name: str, a: np.ndarray, b: np.ndarray) -> Difference:
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    odd = ~(np.isfinite(x) & np.isfinite(y))
    alike = (x == y) | (np.isnan(x) & np.isnan(y))
    mismatched = int(np.count_nonzero(odd & ~alike))
    return _numbers(name, x[~odd], y[~odd], mismatched, elements=a.size)


def _numbers(
    name: str,
    a: np.ndarray,
    b: np.ndarray,
    mismatched: int,
    *,
    exact: bool = False,
    elements: int | None = None,
) -> Difference:
    elements = a.size if elements is None else elements
    if a.size == 0:
        return Difference(name, elements, exact, 0.0, 0.0, 0.0, math.inf, mismatched)
    error = np.abs(a - b)
    max_abs = float(error.max())
    magnitude = float(np.abs(a).max())
    extent = magnitude if a.dtype.kind == "c" else float(a.max() - a.min())
    scale = max(magnitude, extent)
    relative = max_abs / scale if scale else (math.inf if max_abs else 0.0)
    signal, noise = float(np.sum(np.abs(a) ** 2)), float(np.sum(error**2))
    return Difference(
        name,
        elements,
        exact,
        max_abs,
        float(error.mean()),
        relative,
        _ratio_db(signal, noise),
        mismatched,
    )


def _ratio_db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
