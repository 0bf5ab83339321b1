"""Reports on disk: report.json, a self-contained report.html, channels.json."""

from __future__ import annotations

from graphopt.report.files import write_report

__all__ = ["write_report"]
