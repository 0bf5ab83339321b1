"""`graphopt bench` says what was run: the batch that a model insists on, or the one asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from graphopt.cli import measure
from graphopt.runtime import BenchPlan
from tests.asserting import parse
from tests.cli.calling import Run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair of runs is enough to see what is run."""

    def plan(**options: int) -> BenchPlan:
        short = BenchPlan(warmup=0, pairs=1, slow_pairs=1, min_seconds=0.0, max_seconds=0.1)
        return replace(short, threads=options["threads"], seed=options["seed"])

    monkeypatch.setattr(measure, "BenchPlan", plan)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("size", "asked", "told"),
    [("4", [], 4), ("4", ["--batch", 4], 4), ("N", [], 1), ("N", ["--batch", 3], 3)],
)
def test_the_batch_that_is_told_is_run(
    run: Run, tmp_path: Path, size: str, asked: list[object], told: int
) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(parse(f"g (float[{size},8] x) => (float[{size},8] y) {{ y = Relu(x) }}"), path)
    code, said, _ = run("bench", path, *asked, "--json", tmp_path / "out.json")
    assert code == 0
    assert f"batch {told}," in said
    assert json.loads((tmp_path / "out.json").read_text())["batch"] == told


def test_another_batch_than_the_only_one_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(parse("g (float[4,8] x) => (float[4,8] y) { y = Relu(x) }"), path)
    code, _, said = run("bench", path, "--batch", 2)
    assert code == 2
    assert "--batch 2: net.onnx takes batches of 4 only" in said
    assert len(said.strip().splitlines()) == 1
