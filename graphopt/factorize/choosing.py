"""Choose among the offers for all layers, as an overall budget asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from graphopt.coupling.knapsack import Item, choose
from graphopt.factorize.offers import Offer

__all__ = ["by_budget"]


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
