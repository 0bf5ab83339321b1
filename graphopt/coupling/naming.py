"""Choose by patterns of names, such as ["layer1.*", "!layer1.0.*"]; "!" leaves out."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from graphopt.coupling.families import Coupling, Family
from graphopt.errors import RecipeError

__all__ = ["matching_families", "matching_names"]


def matching_names(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that any pattern without "!" matches (all, if there is none), and none with it."""
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return [
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in unwanted)
    ]


def matching_families(coupling: Coupling, patterns: Sequence[str], who: str) -> list[Family]:
    """The families that can be cut and that patterns name; a pattern that names none is an error.

    Raises RecipeError in the name of `who`.
    """
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        if not fnmatch.filter((family.name for family in coupling.families), bare):
            coupling.family(bare)  # says why, where it is frozen or unknown
    chosen = set(matching_names((family.name for family in coupling.families), patterns))
    found = [family for family in coupling.families if family.name in chosen]
    if not found:
        raise RecipeError(f"{who}: families leaves no family to cut")
    return found
