"""Cases of the onnx wheel: outputs after `lossless` are those before, for all that can be run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models.onnx_cases import Finding, check, run_all

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


@pytest.mark.slow
def test_operator_cases() -> None:
    findings = run_all("lossless", jobs=1)
    counts = Counter(finding.outcome for finding in findings)
    assert [f for f in findings if f.outcome == "different"] == []
    assert counts["refused"] == 3, "Optional types"
    assert counts["equal"] + counts["close"] > 1500


def _folder_cases(kind: str) -> list[Path]:
    return sorted(path.parent for path in (DATA / kind).glob("*/model.onnx"))


@pytest.mark.parametrize("kind", ["pytorch-converted", "pytorch-operator", "simple"])
def test_recorded_cases(kind: str) -> None:
    findings = [_recorded(folder) for folder in _folder_cases(kind)]
    assert [f for f in findings if f.outcome in ("different", "refused")] == []
    assert sum(f.outcome in ("equal", "close") for f in findings) > len(findings) / 2


def _recorded(folder: Path) -> Finding:
    model = onnx.load(folder / "model.onnx")
    inputs = []
    for place in range(len(list((folder / "test_data_set_0").glob("input_*.pb")))):
        data = (folder / "test_data_set_0" / f"input_{place}.pb").read_bytes()
        try:
            inputs.append(numpy_helper.to_array(onnx.TensorProto.FromString(data)))
        except (ValueError, TypeError):
            return Finding(folder.name, "not runnable", "inputs are no tensors")
    return check(folder.name, model, inputs, "lossless")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((DATA / "light").glob("*.onnx")), ids=lambda p: p.stem)
def test_light_models(path: Path) -> None:
    """Their weights are ConstantOfShape; the file must not grow by what they stand for."""
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    (given,) = (info for info in model.graph.input if info.name not in weights)
    shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    finding = check(path.stem, model, [rng.random(shape, dtype=np.float32)], "lossless")
    assert finding.outcome in ("equal", "close"), finding
