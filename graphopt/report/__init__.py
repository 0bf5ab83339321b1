"""Reports on disk: report.json, a self-contained report.html, channels.json."""

from __future__ import annotations

from graphopt.report.files import check_folder, write_report
from graphopt.report.numbers import change, loss, macs, score, significant, strict_json, threads

__all__ = [
    "change",
    "check_folder",
    "loss",
    "macs",
    "score",
    "significant",
    "strict_json",
    "threads",
    "write_report",
]
