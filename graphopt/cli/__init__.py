"""The command line: verbs, one line per error, exit codes that a build step can rely on."""

from __future__ import annotations

from graphopt.cli.main import main

__all__ = ["main"]
