"""Re-solve the layers of a cut graph by least squares, and choose what to cut with that in mind."""

from __future__ import annotations

from graphopt.refit.budgeting import fit_budget
from graphopt.refit.choosing import Curve, choices_of, curves
from graphopt.refit.normalising import re_estimate
from graphopt.refit.ordering import Ordering, ordering_of, surgeon
from graphopt.refit.picking import Choice
from graphopt.refit.settings import Fitting, Settings
from graphopt.refit.tracing import (
    Traces,
    merged_traces,
    noted_traces,
    traces_are_current,
    traces_of,
    write_traces,
)
from graphopt.refit.walking import Fit, refit

__all__ = [
    "Choice",
    "Curve",
    "Fit",
    "Fitting",
    "Ordering",
    "Settings",
    "Traces",
    "choices_of",
    "curves",
    "fit_budget",
    "merged_traces",
    "noted_traces",
    "ordering_of",
    "re_estimate",
    "refit",
    "surgeon",
    "traces_are_current",
    "traces_of",
    "write_traces",
]
