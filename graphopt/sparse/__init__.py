"""Which weights are zero and which are shared: exact levels, codebooks, and notes of both."""

from __future__ import annotations

from graphopt.sparse.codebooks import Codebook, fit_codebook
from graphopt.sparse.levels import ALLOCATIONS, Allocation, in_groups, kept_at
from graphopt.sparse.notes import Kept, keep_weights, kept_weights, pass_notes_on
from graphopt.sparse.weights import choose_weights, find_weights

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Codebook",
    "Kept",
    "choose_weights",
    "find_weights",
    "fit_codebook",
    "in_groups",
    "keep_weights",
    "kept_at",
    "kept_weights",
    "pass_notes_on",
]
