"""models/quant_peers.py: one row by graphopt and one by a peer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from models.quant_peers import main

MODELS = Path(__file__).resolve().parent.parent.parent / "models"


def test_a_row_by_us_and_one_by_a_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(MODELS / "digits_resnet.onnx", tmp_path / "net.onnx")
    to = tmp_path / "rows.jsonl"
    call = [str(tmp_path / "net.onnx"), "--data", "digits", "--samples", "64", "--to", str(to),
            "--threads", "1", "2"]  # fmt: skip
    main([*call, "--tools", "graphopt-minmax,ort-minmax"])
    main([*call, "--tools", "graphopt-minmax"])  # known already
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert [row["tool"] for row in rows] == ["float", "graphopt-minmax", "ort-minmax"]
    assert (rows[0]["agreement"], rows[0]["ratios"], rows[0]["size"]) == (1, {}, 1)
    assert rows[0]["top1"] > 0.9
    for row in rows[1:]:
        assert not row["failed"]
        assert row["agreement"] > 0.95
        assert row["decibels"] > 20
        assert 0.2 < row["size"] < 0.4
        assert list(row["ratios"]) == ["1", "2"]
    capsys.readouterr()
    main(["--print", str(to)])
    assert capsys.readouterr().out.count("| net | ") == 3


def test_memory_by_the_number_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(MODELS / "digits_resnet.onnx", tmp_path / "net.onnx")
    main([str(tmp_path / "net.onnx"), "--data", "digits", "--tools", "graphopt-mse",
          "--memory", "16", "400"])  # fmt: skip
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[3].strip() for row in rows] == ["16", "400"]
    assert all(float(row[4]) > 50 for row in rows)
    assert float(rows[0][5]) == 1
    assert float(rows[1][5]) < 1.2
