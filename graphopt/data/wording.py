"""Pieces of error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "reason"]


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' for the nearest known name, or nothing."""
    near = difflib.get_close_matches(found, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def reason(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
