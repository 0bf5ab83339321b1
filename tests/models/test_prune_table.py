"""The table of criteria: what a row says, what is measured again, and how it is printed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from models.prune_table import Cell, Setting, main, measured, table

MODEL = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"
SETTING = Setting(str(MODEL), "digits", "digits", None, 64)


def test_a_row_holds_what_is_measured() -> None:
    """On one set, which the seed splits."""
    row = measured(replace(SETTING, inputs=1300), Cell("l1", "cut", 0.9, 1))
    numbers = {key: float(str(row[key])) for key in ("left", "base", "top1", "divergence")}
    assert (row["inputs"], row["tested"]) == (1300, 137)
    assert 0.8 < numbers["left"] <= 0.9
    assert numbers["base"] > 98 > numbers["top1"]
    assert numbers["divergence"] > 0.1


def test_what_does_not_work_is_said() -> None:
    cell = Cell("reconstruction", "cut", 0.5, 0)
    assert "too few" in str(measured(replace(SETTING, inputs=1), cell)["error"])


def test_known_rows_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "table.jsonl"
    row = {
        "model": MODEL.name, "criterion": "l1", "way": "cut", "macs": 0.5, "seed": 0, "joint": 0,
        "mirror": False, "base": 98.0, "top1": 40.0, "agreement": 41.0,
    }  # fmt: skip
    more = {**row, "seed": 1, "top1": 42.0, "agreement": 43.0, "gradients": 0.0}
    other = {**row, "top1": 99.0, "gradients": 0.5}  # written when errors could be weighted
    target.write_text("".join(f"{json.dumps(each)}\n" for each in (row, more, other)))
    options = ["--criteria", "l1", "--ways", "cut", "--macs", "0.5", "--seeds", "2", "--to"]
    monkeypatch.setattr(sys, "argv", ["prune_table", str(MODEL), *options, str(target)])
    main()
    assert len(target.read_text().splitlines()) == 3
    monkeypatch.setattr(sys, "argv", ["prune_table", "--print", str(target)])
    main()
    printed = capsys.readouterr().out
    assert "| l1 | 41.00 ±1.41 / 42.00 |" in printed
    assert table([row]) in printed.replace("41.00 ±1.41 / 42.00", "40.00 / 41.00")
