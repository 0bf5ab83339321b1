"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.samples import convnet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small network, alone in its folder."""
    path = tmp_path / "net.onnx"
    onnx.save(convnet(), path)
    return path
