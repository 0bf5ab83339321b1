"""What may take a layer's place: what it costs, what it gets wrong, and how fast it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Literal

import numpy as np

from graphopt.errors import RuntimeUnavailable
from graphopt.factorize.kernels import Doubles, Kernel, Part, Sizes, kernel_of
from graphopt.factorize.methods import METHODS, Method
from graphopt.factorize.pieces import Decomposition, Ranks
from graphopt.factorize.replacing import Replacement, has_free_bias, replacement
from graphopt.factorize.sampling import Sample
from graphopt.ir import Array, Dims, Graph, part
from graphopt.runtime.benchmark import BenchPlan, bench

__all__ = ["Goal", "Offer", "Rule", "Scene", "offers_of"]

Goal = Literal["latency", "size", "macs"]

_MOST = 8
"""Offers for one layer that are refined and timed."""

_ROUNDS = 20
"""Of refinement by alternating projections or least squares."""

_QUICK = BenchPlan(warmup=2, pairs=20, slow_pairs=5, min_seconds=0.2, max_seconds=2.0)


@dataclass(frozen=True, eq=False)
class Offer:
    """One way to replace a layer.

    `error` is of the layer's sums relative to their variance, or of its weights relative to
    their energy where there are no inputs. `time` is measured, relative to the layer's own.
    """

    method: str
    ranks: Ranks
    macs: int
    bytes: int
    error: float
    time: float | None = None
    saved_ms: float = 0.0
    chain: Replacement | None = None


@dataclass(frozen=True)
class Query:
    """A layer that ranks are asked for: one method's view of it."""

    kernel: Kernel
    method: Method
    decomposition: Decomposition
    cost: Callable[[Ranks], float]
    """What ranks leave of the layer's work, or of its bytes where size is the goal."""
    aware: bool
    """Whether inputs have a say in the decomposition."""

    @property
    def plain(self) -> Decomposition:
        """The decomposition of the weights alone."""
        if self.aware:
            return self.method.decompose(self.kernel, None)
        return self.decomposition

    @property
    def full(self) -> Ranks:
        return self.method.full(self.kernel)


Rule = Callable[[Query], Iterable[Ranks]]

Judge = Callable[[Doubles], float]
"""From what a kernel would become to its error."""

_Found = tuple[Offer, Decomposition]


@dataclass(frozen=True)
class Scene:
    """Where layers are judged: the graph, its sizes in one run, and what a replacement is for."""

    graph: Graph
    sizes: Mapping[str, Sizes]
    goal: Goal
    methods: Sequence[str]
    take: Literal["all", "most exact", "cheapest"] = "all"
    """Which replacements of a layer are wanted: the others need not be timed."""
    threads: int = 1
    seed: int = 0
    timed: dict[tuple[object, ...], tuple[float, float] | None] = field(default_factory=dict)
    """Measured times of replacements and what they save in ms; None: not faster."""

    def cost(self, kernel: Kernel, parts: Sequence[Part]) -> int:
        """The work, or the bytes where size is the goal."""
        if self.goal == "size":
            return kernel.bytes(parts)
        return kernel.macs(parts, self.sizes[kernel.output])

    def offer(self, kernel: Kernel, method: str, ranks: Ranks, error: float) -> Offer:
        parts = METHODS[method].parts(kernel, ranks)
        macs = kernel.macs(parts, self.sizes[kernel.output])
        return Offer(method, ranks, macs, kernel.bytes(parts), error)

    def amount(self, offer: Offer) -> int:
        """What an offer costs, likewise."""
        return offer.bytes if self.goal == "size" else offer.macs

    def full_ranks(self) -> list[Ranks]:
        """The full ranks of all layers, by every method that fits."""
        kernels = [kernel_of(self.graph, node) for node in self.graph.nodes]
        return [
            METHODS[name].full(kernel)
            for kernel in kernels
            if isinstance(kernel, Kernel)
            for name in self.methods
            if METHODS[name].fits(kernel)
        ]


def offers_of(scene: Scene, kernel: Kernel, sample: Sample | None, rule: Rule) -> list[Offer]:
    """Replacements of a layer that reach the goal, the cheapest and least exact first.

    Only the best of them, if the scene takes no more.
    """
    whole = scene.cost(kernel, kernel.parts)
    judge = cache(lambda: _judge(kernel, sample))
    found: list[_Found] = []
    for name in scene.methods:
        method = METHODS[name]
        if not method.fits(kernel):
            continue
        decomposition = method.decompose(kernel, sample)

        def cost(ranks: Ranks, method: Method = method) -> float:
            return scene.cost(kernel, method.parts(kernel, ranks)) / max(whole, 1)

        for ranks in rule(Query(kernel, method, decomposition, cost, sample is not None)):
            if cost(ranks) < 1:
                lost = decomposition.lost
                error = lost(ranks) if lost else judge()(decomposition.build(ranks, 0).kernel)
                found.append((scene.offer(kernel, name, ranks, error), decomposition))
    built: Iterable[Offer] = (
        _built(scene, kernel, sample, entry, judge)
        for entry in _thinned(_undominated(scene, found))
    )
    if scene.take == "most exact":
        built = sorted(built, key=lambda offer: offer.error)
    faster = (timed for offer in built if (timed := _timed(scene, kernel, offer)) is not None)
    return list(faster if scene.take == "all" else islice(faster, 1))


def _built(
    scene: Scene, kernel: Kernel, sample: Sample | None, found: _Found, judge: Callable[[], Judge]
) -> Offer:
    """The offer with the layers that it stands for, refined, and what they get wrong."""
    offer, decomposition = found
    chain = decomposition.build(offer.ranks, _ROUNDS)
    error = offer.error if decomposition.lost else judge()(chain.kernel)
    shift = None
    if sample is not None and has_free_bias(scene.graph, kernel):
        shift = sample.shift(kernel.tensor, chain.kernel)
    return replace(offer, error=error, chain=Replacement.of(kernel, chain, shift))


def _judge(kernel: Kernel, sample: Sample | None) -> Judge:
    if sample is not None:
        return sample.judge(kernel.tensor)
    energy = max(float(np.sum(kernel.tensor**2)), 1e-30)
    return lambda made: float(np.sum((kernel.tensor - made) ** 2)) / energy


def _undominated(scene: Scene, found: Sequence[_Found]) -> list[_Found]:
    """Those that are better than all cheaper ones, the cheapest first."""
    ordered = sorted(found, key=lambda entry: (scene.amount(entry[0]), entry[0].error))
    kept: list[_Found] = []
    for entry in ordered:
        if not kept or entry[0].error < kept[-1][0].error:
            kept.append(entry)
    return kept


def _thinned(found: Sequence[_Found]) -> list[_Found]:
    """At most so many, evenly spread."""
    places = np.unique(np.linspace(0, len(found) - 1, _MOST).round().astype(int))
    return [found[place] for place in places] if found else []


def _timed(scene: Scene, kernel: Kernel, offer: Offer) -> Offer | None:
    """The offer with its time, if that is less than the layer's own; unchanged for other goals."""
    assert offer.chain is not None, "what is timed has been built"
    if not offer.chain.is_finite:
        return None
    if scene.goal != "latency":
        return offer
    node, sizes = kernel.node, scene.sizes[kernel.output]
    attrs = tuple(sorted((key, str(value)) for key, value in node.attrs.items()))
    key = (
        node.op,
        attrs,
        kernel.shape,
        str(kernel.layer.weight.dtype),
        sizes.read,
        offer.method,
        offer.ranks,
    )
    if key not in scene.timed:
        scene.timed[key] = _time(scene, kernel, offer.chain)
    measured = scene.timed[key]
    return None if measured is None else replace(offer, time=measured[0], saved_ms=measured[1])


def _time(scene: Scene, kernel: Kernel, chain: Replacement) -> tuple[float, float] | None:
    """Time the layer and its replacement alone, in turn; None where that is not faster."""
    feeds = _feeds(scene, kernel)
    if feeds is None:
        return None
    alone = part(scene.graph, tuple(feeds), (kernel.output,))
    found = kernel_of(alone, alone.nodes[-1])
    assert isinstance(found, Kernel), "a layer alone is the same layer"
    tried = alone.clone()
    again = kernel_of(tried, tried.nodes[-1])
    assert isinstance(again, Kernel), "a layer alone is the same layer"
    tried.apply(replacement(tried, again, chain)[0])
    plan = replace(_QUICK, threads=scene.threads)
    try:
        timing = bench(alone, tried, feeds=feeds, plan=plan)
    except RuntimeUnavailable:
        return None
    assert timing.ratio is not None, "two models were timed"
    if timing.verdict != "faster":
        return None
    return timing.ratio, timing.a.median_ms * (1 - timing.ratio)


def _feeds(scene: Scene, kernel: Kernel) -> dict[str, Array] | None:
    """Random values of what a layer reads, a bias that is computed too; None for unknown types."""
    data, *biases = (
        tensor.name
        for place, tensor in enumerate(kernel.node.inputs)
        if tensor.name and (place == 0 or scene.graph.constant(tensor.name) is None)
    )
    width = kernel.groups * kernel.outputs
    shapes = {name: _bias_shape(scene.graph.shape(name), width) for name in biases}
    shapes[data] = scene.sizes[kernel.output].read
    rng = np.random.default_rng(scene.seed)
    feeds: dict[str, Array] = {}
    for name in (data, *biases):
        dtype = scene.graph.dtype(name)
        if dtype is None:
            return None
        feeds[name] = rng.standard_normal(shapes[name]).astype(dtype)
    return feeds


def _bias_shape(known: Dims | None, width: int) -> tuple[int, ...]:
    """A bias with a value for each output, of as many axes as it is known to have."""
    if known is None:
        return (width,)
    return (*(1 for _ in known[1:]), width) if known else ()
