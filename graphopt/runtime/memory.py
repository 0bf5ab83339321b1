"""Measure how much memory a model takes, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import numpy_helper

from graphopt.errors import GraphoptError, RuntimeUnavailable
from graphopt.ir import Graph
from graphopt.runtime.session import Model, Session

__all__ = ["peak_memory_mb"]

_RUNS = 3
_CHILD = "from graphopt.runtime.memory import _child; _child()"
_STATUS = Path("/proc/self/status")


def peak_memory_mb(model: Model, feeds: Mapping[str, np.ndarray], threads: int = 1) -> float | None:
    """Return what loading and running `model` adds to a fresh process at most.

    None where the system does not tell (elsewhere than on Linux). Raises RuntimeUnavailable if the
    model does not run.
    """
    if not _STATUS.exists():
        return None
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = _stored(model, Path(folder) / "model.onnx")
        for index, (name, array) in enumerate(feeds.items()):
            proto = numpy_helper.from_array(array, name)
            (Path(folder) / f"{index}.pb").write_bytes(proto.SerializeToString())
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(path), folder, str(threads)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RuntimeUnavailable(f"memory: the model cannot be measured: {last}")
    return float(done.stdout)


def _stored(model: Model, path: Path) -> Path:
    """A file with the model: its own if it comes from one, else written to `path`."""
    if isinstance(model, str | Path):
        return Path(model)
    if isinstance(model, Graph):
        model.save(path)
    else:
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def _child() -> None:
    model, folder, threads = sys.argv[1:]
    tensors = [onnx.load_tensor(file) for file in sorted(Path(folder).glob("*.pb"))]
    feeds = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    before = psutil.Process().memory_info().rss
    try:
        with Session.open(model, threads=int(threads)) as session:
            for _ in range(_RUNS):
                session.run(feeds)
            sys.stdout.write(str((_peak_bytes() - before) / 1e6))
    except GraphoptError as error:
        sys.exit(str(error))


def _peak_bytes() -> int:
    """The high-water mark of this process alone; ru_maxrss begins at its parent's."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
