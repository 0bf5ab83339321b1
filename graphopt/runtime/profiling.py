"""How long each kernel of a model takes, as ONNX Runtime's own profiler says."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt.runtime.session import Model, Session

__all__ = ["Kernel", "kernels"]

_RUNS = 30
_UNDISTURBED = 0.2
"""The fifth of the runs in which little else was going on."""


@dataclass(frozen=True)
class Kernel:
    """One node of the optimized graph: the name ONNX Runtime gave it, its operator, its time."""

    name: str
    op: str
    seconds: float


def kernels(
    model: Model, feeds: Mapping[str, np.ndarray], *, threads: int = 1
) -> tuple[Kernel, ...]:
    """Seconds of every kernel, after ONNX Runtime's optimization, when hardly disturbed.

    Raises RuntimeUnavailable if the model cannot be loaded or run.
    """
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        prefix = str(Path(folder) / "profile")
        with Session.open(model, threads=threads, profile=prefix) as session:
            for _ in range(_RUNS):
                session.run(feeds)
            events = json.loads(Path(session.profile()).read_text())
    for event in events:
        name = str(event["name"])
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            key = name.removesuffix("_kernel_time"), str(event["args"]["op_name"])
            times[key].append(float(event["dur"]) * 1e-6)
    return tuple(
        Kernel(name, op, float(np.quantile(seconds, _UNDISTURBED)))
        for (name, op), seconds in times.items()
    )
