"""The table of factorizations measures what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.factorize_table import main

NETWORK = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"


def test_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            str(NETWORK),
            "--calibration=digits:train[:64]",
            "--test=digits:test[:100]",
            "--preprocess=unit",
            "--methods=svd + spatial",
            "--rules=ratio",
            "--goal=macs",
            "--samples=64",
        ]
    )
    first, _, _, row = capsys.readouterr().out.strip().splitlines()
    accuracy = float(first.split(": ")[1].split(" %")[0])
    assert accuracy >= 97
    figures = [float(word) for word in row.removeprefix("svd + spatial").split()[1:]]
    left, lost, ratios = figures[0::3], figures[1::3], figures[2::3]
    assert len(left) == len(lost) == len(ratios) == 3, "weights, activations, refit"
    assert all(0.2 < part < 0.6 for part in left)
    assert lost[2] < lost[0], "a refit helps"
    assert all(ratio > 0 for ratio in ratios)
