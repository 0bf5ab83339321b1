"""Fixtures for the whole suite: seeds, and the optional test models and data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    np.random.seed(0)  # noqa: NPY002 (libraries under test may draw from the global state)


@pytest.fixture
def shared_model() -> object:
    """A function from a file name to its path under $GRAPHOPT_MODELS; skips where it is absent."""

    def find(name: str) -> Path:
        folder = os.environ.get("GRAPHOPT_MODELS")
        if not folder or not (Path(folder) / name).exists():
            pytest.skip(f"needs {name} in the folder that GRAPHOPT_MODELS names")
        return Path(folder) / name

    return find
