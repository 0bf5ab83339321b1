"""Fixtures for the whole suite: seeds, the command line, the optional test models and data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from graphopt.cli import main
from tests.cli.calling import Run


@pytest.fixture(autouse=True)
def _seeded() -> None:
    np.random.seed(0)  # noqa: NPY002 (libraries under test may draw from the global state)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def shared_model() -> object:
    """A function from a file name to its path under $GRAPHOPT_MODELS; skips where it is absent."""

    def find(name: str) -> Path:
        folder = os.environ.get("GRAPHOPT_MODELS")
        if not folder or not (Path(folder) / name).exists():
            pytest.skip(f"needs {name} in the folder that GRAPHOPT_MODELS names")
        return Path(folder) / name

    return find
