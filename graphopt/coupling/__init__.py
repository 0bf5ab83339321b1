"""Coupled channels: find what must be removed together, remove it, check it against a mask."""

from __future__ import annotations

from graphopt.coupling.constants import Absorbed, absorb_constants
from graphopt.coupling.costs import Held
from graphopt.coupling.families import (
    Coupling,
    Family,
    Frozen,
    Member,
    couple,
    explain,
    what_holds,
    why_nothing,
)
from graphopt.coupling.masking import mask
from graphopt.coupling.prepare import prepare
from graphopt.coupling.removal import Kept, Plan, remove
from graphopt.coupling.rules import RULES

__all__ = [
    "RULES",
    "Absorbed",
    "Coupling",
    "Family",
    "Frozen",
    "Held",
    "Kept",
    "Member",
    "Plan",
    "absorb_constants",
    "couple",
    "explain",
    "mask",
    "prepare",
    "remove",
    "what_holds",
    "why_nothing",
]
