"""Replace layers by chains of smaller ones: low-rank factorization of kernels and matrices."""

from __future__ import annotations

from graphopt.factorize.choosing import by_budget
from graphopt.factorize.kernels import Kernel, Sizes, kernel_of
from graphopt.factorize.methods import METHODS
from graphopt.factorize.offers import Goal, Offer, Query, Rule, Scene
from graphopt.factorize.pieces import Ranks
from graphopt.factorize.ranks import by_energy, by_evbmf, by_part, fixed, grid, within
from graphopt.factorize.surveying import Survey, sizes_of, survey, with_offers
from graphopt.factorize.timing import Timer, not_slower, within_time

__all__ = [
    "METHODS",
    "Goal",
    "Kernel",
    "Offer",
    "Query",
    "Ranks",
    "Rule",
    "Scene",
    "Sizes",
    "Survey",
    "Timer",
    "by_budget",
    "by_energy",
    "by_evbmf",
    "by_part",
    "fixed",
    "grid",
    "kernel_of",
    "not_slower",
    "sizes_of",
    "survey",
    "with_offers",
    "within",
    "within_time",
]
