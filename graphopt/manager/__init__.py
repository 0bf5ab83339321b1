"""The pass manager: stages of passes, each gated, measured and recorded."""

from __future__ import annotations

from graphopt.manager.gate import TOLERANCES, Gate, Verdict
from graphopt.manager.manager import PassManager, Request, Result
from graphopt.manager.record import Measured, PassRecord, Report, Size, size_of, size_of_source
from graphopt.manager.stages import PassFailure, Silent, Watcher

__all__ = [
    "TOLERANCES",
    "Gate",
    "Measured",
    "PassFailure",
    "PassManager",
    "PassRecord",
    "Report",
    "Request",
    "Result",
    "Silent",
    "Size",
    "Verdict",
    "Watcher",
    "size_of",
    "size_of_source",
]
