"""Two processes that torchrun starts learn what one with twice the batch does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt.ir import Graph
from tests.train.parallel import train

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.train.parallel", str(tmp_path / "two.onnx")]
    done = subprocess.run(
        [*command, "8"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    processes, batch, steps, loss = done.stdout.split()[-4:]
    alone = train(str(tmp_path / "one.onnx"), 16)
    assert (processes, batch, int(steps)) == ("2", "16", alone.steps)
    assert float(loss) == pytest.approx(alone.curve[-1].held_out, rel=1e-4)
    one, two = (Graph.load(tmp_path / f"{name}.onnx").constants() for name in ("one", "two"))
    for name, array in one.items():
        np.testing.assert_allclose(
            np.asarray(array, np.float64), np.asarray(two[name], np.float64), atol=1e-5
        )
