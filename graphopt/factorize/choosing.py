"""Choose among the offers for all layers: one for each, or as an overall budget asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from graphopt.coupling.knapsack import Item, choose
from graphopt.factorize.offers import Offer

__all__ = ["Choice", "by_budget", "cheapest", "most_exact"]

Choice = Mapping[str, Offer]
"""Output of the layer -> what takes its place."""


def most_exact(offers: Mapping[str, Sequence[Offer]]) -> dict[str, Offer]:
    """Of each layer the offer with the least error."""
    return {name: min(row, key=lambda offer: offer.error) for name, row in offers.items() if row}


def cheapest(
    offers: Mapping[str, Sequence[Offer]], cost: Callable[[Offer], float]
) -> dict[str, Offer]:
    """Of each layer the offer that costs least."""
    return {name: min(row, key=cost) for name, row in offers.items() if row}


def by_budget(
    offers: Mapping[str, Sequence[Offer]],
    saved: Callable[[str, Offer], float],
    wanted: float,
) -> dict[str, Offer]:
    """Offers that together save at least `wanted`, or as much as they can, with the least loss.

    The loss is the product of the parts of energy that layers keep (Zhang et al. 2016).
    """
    items: dict[str, list[Item]] = {
        name: [
            (float(place + 1), saved(name, offer), -math.log1p(-min(offer.error, 1 - 1e-9)))
            for place, offer in enumerate(row)
        ]
        for name, row in offers.items()
    }
    chosen = choose(items, wanted)
    return {name: offers[name][int(place) - 1] for name, place in chosen.items() if place}
