"""Moved to graphopt.passbase; import from there."""

from __future__ import annotations

from graphopt.passbase import Context, Need, Note, Pass, Promise

__all__ = ["Context", "Need", "Note", "Pass", "Promise"]
