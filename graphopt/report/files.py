"""Write a run's report into a directory."""

from __future__ import annotations

import json
from pathlib import Path

from graphopt.errors import TargetError
from graphopt.files import atomic_file, check_folder_writable
from graphopt.manager import Report
from graphopt.report.numbers import strict_json
from graphopt.report.page import render

__all__ = ["check_folder", "write_report"]


def check_folder(folder: Path) -> None:
    """Raise TargetError, before any work is done, for what cannot become a directory."""
    if folder.exists() and not folder.is_dir():
        raise TargetError(f"--report {folder}: is a file; name a directory")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    check_folder_writable(there, f"--report {folder}")


def write_report(report: Report, folder: Path) -> None:
    """Write report.json and report.html, and channels.json if channels were removed.

    channels.json maps each initializer that was cut to {axis: [kept indices]} of the original.
    Raises TargetError if the directory cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(f"--report {folder}: cannot be made ({error.strerror})") from error
    files = {
        "report.json": strict_json(report.to_json()),
        "report.html": render(report),
    }
    if report.channels is not None:
        files["channels.json"] = json.dumps(report.channels) + "\n"
    for name, text in files.items():
        with atomic_file(folder / name) as file:
            file.write(text.encode())
