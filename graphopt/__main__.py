"""`python -m graphopt`, the same as the `graphopt` command."""

from __future__ import annotations

from graphopt.cli import main

main()
