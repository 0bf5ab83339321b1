"""Replace layers by chains of smaller ones of low rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphopt.cost import cost, dim_key
from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.factorize import (
    METHODS,
    Goal,
    Offer,
    Ranks,
    Rule,
    Scene,
    Survey,
    Timer,
    by_budget,
    by_energy,
    by_evbmf,
    by_part,
    fixed,
    grid,
    not_slower,
    sizes_of,
    survey,
    with_offers,
    within,
    within_time,
)
from graphopt.ir import Graph
from graphopt.passbase import Context, Note, Pass, Promise
from graphopt.refit import Settings, Traces, refit
from graphopt.runtime import example_feeds

__all__ = ["Factorize"]

_DEFAULT_RATIO = 0.5

_BUDGETS = {"macs", "bytes", "latency"}

_NO_LAYERS = (
    "nothing is replaced, for there is no Conv, ConvTranspose, Gemm or MatMul outside bodies that "
    "multiplies what is computed with a constant float weight behind it"
)


@dataclass(frozen=True)
class Factorize(Pass):
    """Replace layers by chains of smaller ones of low rank.

    `methods` that fit a layer compete for it: svd (matrix products and 1x1 Conv), channel (fewer
    channels, then a 1x1 Conv), spatial (columns, then rows), tucker (a small core between two 1x1
    Conv), cp (each axis for itself). Which ranks: so that each layer has the fraction `ratio` of
    its work left (0.5 if nothing is said); the given `rank`; the ranks that carry the fraction
    `energy`; those that stand out of noise (`evbmf` times the rank of that analysis); or those
    that lose least while at most the fraction `macs` of all multiply-accumulates, `bytes` of the
    weights' bytes, or `latency` of the time of a run in ONNX Runtime here is left.

    A layer is replaced only where that reaches the `goal`: latency (the replacement is measured
    to be faster here), size (its weights are fewer), macs (it takes less work); size is the goal
    of a budget of bytes, else latency. Ranks are multiples of `align` where above it.

    With calibration inputs, of which `samples` are used and no labels, the error of the layers'
    sums counts instead of that of their weights, and then all layers behind are solved anew, as by
    `refit`, with `rounds` and `damping`, on what the layers before have become; unless `refit` is
    off.
    """

    name: ClassVar[str] = "factorize"
    promise: ClassVar[Promise] = Promise.LOSSY
    methods: tuple[str, ...] = ("svd", "channel", "spatial", "tucker")
    ratio: float | None = None
    rank: int | None = None
    energy: float | None = None
    evbmf: float | None = None
    macs: float | None = None
    bytes: float | None = None
    latency: float | None = None
    goal: Goal | None = None
    align: int = 8
    samples: int = 512
    refit: bool = True
    rounds: int = 6
    damping: float = 1e-4

    def __post_init__(self) -> None:
        given = self._given()
        if len(given) > 1:
            raise RecipeError(f"{self.name}: give one of {' and '.join(given)}, not several")
        for key in given.keys() & {"ratio", "energy", "macs", "bytes", "latency"}:
            if not 0.0 < given[key] < 1.0:
                raise RecipeError(f"{self.name}: {key} must be between 0 and 1, got {given[key]}")
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            found = repr(unknown[0]) if unknown else "none"
            raise RecipeError(f"{self.name}: methods are {', '.join(METHODS)}; got {found}")
        for key, number in (("align", self.align), ("samples", self.samples)):
            if number < 1:
                raise RecipeError(f"{self.name}: {key} must be at least 1, got {number}")
        if self.rank is not None and self.rank < 1:
            raise RecipeError(f"{self.name}: rank must be at least 1, got {self.rank}")
        for key, value in (("evbmf", self.evbmf), ("damping", self.damping)):
            if value is not None and not value > 0:
                raise RecipeError(f"{self.name}: {key} must be above 0, got {value}")
        if self.rounds < 0:
            raise RecipeError(f"{self.name}: rounds must not be negative, got {self.rounds}")
        if self.latency is not None and self._goal() != "latency":
            raise RecipeError(
                f"{self.name}: a budget of latency is kept by what is measured to be faster; its "
                f"goal must be latency, got {self.goal}"
            )

    def _given(self) -> dict[str, float]:
        """The option that says which ranks, if one does."""
        options = {
            "ratio": self.ratio, "rank": self.rank, "energy": self.energy, "evbmf": self.evbmf,
            "macs": self.macs, "bytes": self.bytes, "latency": self.latency,
        }  # fmt: skip
        return {key: value for key, value in options.items() if value is not None}

    def _goal(self) -> Goal:
        return self.goal or ("size" if self.bytes is not None else "latency")

    def run(self, graph: Graph, context: Context) -> None:
        data = None if context.calibration is None else context.calibration.take(self.samples)
        feeds = example_feeds(graph, context.calibration, context.seed)
        scene = Scene(
            graph,
            sizes_of(graph, feeds),
            self._goal(),
            self.methods,
            self._taken(),
            context.threads,
            context.seed,
        )
        self._check_rank(scene)
        found = survey(
            scene, self._rule(), data, lambda part: context.progress("factorizing layers", part)
        )
        chosen = self._chosen(found, scene, feeds, context)
        after, between = with_offers(graph, chosen)
        context.notes["layers"] = {
            found.kernels[output].name: _note(scene, found, output, offer)
            for output, offer in chosen.items()
        }
        context.left_alone(self._left_alone(found, chosen))
        if not found.kernels and not found.left_alone:
            context.notes["remark"] = _NO_LAYERS
        if data is not None and self.refit and chosen:
            self._refit(after, scene.graph, between, data, context)
        graph.adopt(after)

    def _rule(self) -> Rule:
        """From a layer and a method to the ranks that are asked for."""
        ((key, value),) = (self._given() or {"ratio": _DEFAULT_RATIO}).items()
        rule = _RULES.get(key, _offered)(value, self.align)
        return lambda query: dict.fromkeys(
            within(query.method, query.kernel, ranks, self.align) for ranks in rule(query)
        )

    def _taken(self) -> Literal["all", "most exact", "cheapest"]:
        """Which replacements of a layer there must be to choose from."""
        if self._given().keys() & _BUDGETS:
            return "all"
        return "most exact" if self.ratio is not None or not self._given() else "cheapest"

    def _check_rank(self, scene: Scene) -> None:
        """Refuse a rank that no layer's matrix has, if there are layers."""
        ranks = [min(rank) for rank in scene.full_ranks()]
        most = max(ranks, default=0)
        if ranks and self.rank is not None and self.rank > most:
            raise RecipeError(
                f"{self.name}: rank must be at most {most}, the largest that the matrix of any "
                f"layer has, got {self.rank}"
            )

    def _chosen(
        self, found: Survey, scene: Scene, feeds: Mapping[str, np.ndarray], context: Context
    ) -> dict[str, Offer]:
        timer = Timer(scene.graph, feeds, context.threads)
        budgets = {"macs": self.macs, "bytes": self.bytes, "latency": self.latency}
        for key, budget in budgets.items():
            if budget is not None:
                chosen, left = self._in_budget(found, scene, timer, key, budget)
                context.notes["left"] = left
                if left > budget:
                    context.notes["unmet"] = [
                        f"{key} {budget:g}: the least that was found to be left is {left:.3f}"
                    ]
                return chosen
        chosen = {output: row[0] for output, row in found.offers.items()}
        return not_slower(chosen, timer) if scene.goal == "latency" else chosen

    def _left_alone(self, found: Survey, chosen: Mapping[str, Offer]) -> dict[str, str]:
        """Why layers were not replaced; none is needed for those that a budget has spared."""
        spared = [kernel.name for out, kernel in found.kernels.items() if out not in chosen]
        if chosen and self._given().keys() & _BUDGETS:
            spared = []
        why = dict.fromkeys(spared, "the model was not measured to be faster with it replaced")
        return {**found.left_alone, **why}

    def _in_budget(
        self, found: Survey, scene: Scene, timer: Timer, key: str, budget: float
    ) -> tuple[dict[str, Offer], float]:
        """Offers that leave at most the given part of the time, work or bytes; what they leave."""
        if key == "latency":
            return within_time(found.offers, timer, budget)
        whole = cost(scene.graph, sizes=_open_sizes(scene.graph, timer.feeds))
        total = whole.macs if key == "macs" else whole.weight_bytes

        def saved(output: str, offer: Offer) -> float:
            kernel = found.kernels[output]
            if key == "macs":
                return kernel.macs(kernel.parts, scene.sizes[output]) - offer.macs
            return kernel.bytes(kernel.parts) - offer.bytes

        chosen = by_budget(found.offers, saved, total * (1 - budget))
        if scene.goal == "latency":
            chosen = not_slower(chosen, timer)
        return chosen, 1 - sum(saved(*entry) for entry in chosen.items()) / max(total, 1)

    def _refit(
        self, graph: Graph, before: Graph, between: Iterable[str], data: Dataset, context: Context
    ) -> None:
        """Solve the last layers of the chains, and what is behind them, on what is before them."""
        traces: Traces = {name: {} for name in between}
        fit = refit(
            graph,
            before,
            traces,
            data,
            Settings(
                damping=self.damping,
                rounds=self.rounds,
                seed=context.seed,
                threads=context.threads,
            ),
            progress=lambda part: context.progress("refitting", part),
        )
        context.notes["refitted"] = {
            name: {"before": first, "after": last} for name, (first, last) in fit.errors.items()
        }


def _ranked(value: float, align: int) -> Rule:
    return lambda query: _known(fixed(query.full, int(value)))


def _reduced(value: float, align: int) -> Rule:
    return lambda query: _known(by_part(query.full, query.cost, value, align))


def _energetic(value: float, align: int) -> Rule:
    return lambda query: [by_energy(query.decomposition, query.full, value, align)]


def _significant(value: float, align: int) -> Rule:
    return lambda query: _known(
        by_evbmf(query.method, query.kernel, query.plain.spectra, value, align)
    )


def _offered(value: float, align: int) -> Rule:
    return lambda query: grid(query.full, query.cost, 1.0, align)


def _known(ranks: Ranks | None) -> list[Ranks]:
    return [] if ranks is None else [ranks]


_RULES: Mapping[str, Callable[[float, int], Rule]] = {
    "rank": _ranked,
    "ratio": _reduced,
    "energy": _energetic,
    "evbmf": _significant,
}
"""Option -> from its value and the alignment to the ranks that are asked for; others, being
budgets, choose from what is offered."""


def _open_sizes(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {
        dim_key(name, axis, size): array.shape[axis]
        for name, array in feeds.items()
        for axis, size in enumerate(graph.shape(name) or ())
        if not isinstance(size, int)
    }


def _note(scene: Scene, found: Survey, output: str, offer: Offer) -> Note:
    kernel = found.kernels[output]
    return {
        "method": offer.method,
        "ranks": list(offer.ranks),
        "error": offer.error,
        "macs": {"before": kernel.macs(kernel.parts, scene.sizes[output]), "after": offer.macs},
        "bytes": {"before": kernel.bytes(kernel.parts), "after": offer.bytes},
        "time": offer.time,
    }
