"""The command line called within the process of the tests."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Run"]

Run = Callable[..., tuple[int, str, str]]
"""From arguments to the exit code and what was said on standard output and standard error."""
