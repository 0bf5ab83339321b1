"""Trainings asked for on the command line: what goes on where it was, what is refused at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.calling import Run
from tests.samples import convnet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small network, with inputs and labels beside it."""
    path = tmp_path / "net.onnx"
    onnx.save(convnet(), path)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((48, 3, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=rng.integers(0, 10, 48))
    return path


def test_gradients_on_all_cores(run: Run, model: Path) -> None:
    steps = "remove-channels{importance=taylor,align=1},refit{joint=1}"
    data = ["--data", model.with_name("data.npz"), "--threads", "0", "--no-bench"]
    code, _, said = run("optimize", model, "--passes", steps, *data)
    assert code == 0, said
