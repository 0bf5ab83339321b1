"""The report on disk says what the run found and needs nothing from the network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from graphopt.errors import TargetError
from graphopt.ir import Graph
from graphopt.manager import PassManager, Report
from graphopt.passbase import Note
from graphopt.report import write_report
from tests.samples import Damage, DropIdentity, convnet


@pytest.fixture(scope="module")
def report() -> Report:
    result = PassManager([DropIdentity(), Damage()]).run(Graph.load(convnet()))
    return result.report.with_files(Path("<net>.onnx"), Path("out & about.onnx"))


def test_json_has_what_the_contract_names(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    assert {"graphopt", "input", "output", "seed", "baseline", "result", "passes"} <= set(document)
    for side in ("baseline", "result"):
        assert {"nodes", "parameters", "macs", "bytes", "latency_ms", "metric"} <= set(
            document[side]
        )
        assert set(document[side]["latency_ms"]) == {"median", "p10", "p90"}
    fields = {"name", "options", "seconds", "accepted", "modified", "reason", "promise",
              "max_abs_diff", "before", "after"}  # fmt: skip
    assert all(fields <= set(entry) for entry in document["passes"])
    assert [entry["accepted"] for entry in document["passes"]] == [True, False]
    assert not (tmp_path / "channels.json").exists()


def test_page_is_self_contained_and_escaped(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    assert "&lt;net&gt;.onnx" in page
    assert "out &amp; about.onnx" in page
    assert "<net>" not in page
    assert "rolled back damage" in page
    assert page.count("<svg") == 1


def test_remarks_of_passes_that_stay_are_shown(report: Report, tmp_path: Path) -> None:
    kept, rolled_back = (replace(record, notes={"remark": "1 < 2"}) for record in report.passes)
    told = replace(report, passes=(kept, rolled_back))
    write_report(told, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<p>drop-identity: 1 &lt; 2</p>" in page
    assert "damage: 1" not in page
    assert "drop-identity: 1 < 2" in str(told)


def test_channels_are_written_if_some_were_cut(report: Report, tmp_path: Path) -> None:
    record = replace(report.passes[0], notes={"channels": {"w": {"0": [1, 2]}}})
    write_report(replace(report, passes=(record,)), tmp_path)
    assert json.loads((tmp_path / "channels.json").read_text()) == {"w": {"0": [1, 2]}}


def test_unwritable_folder_is_named(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match="cannot be made"):
        write_report(report, tmp_path / "file" / "inner")


def _row(layer: str, decibels: float, share: float, *, back: bool = False) -> Note:
    return {"layer": layer, "decibels": decibels, "share": share, "in_floats": back}


def test_errors_of_layers_are_plotted(report: Report, tmp_path: Path) -> None:
    rows = [_row("a<b", 12.5, 0.75, back=True), _row("c", float("inf"), 0.0)]
    rows += [_row(f"l{number}", 40.0, 0.005) for number in range(50)]
    record = replace(report.passes[0], name="quantize", notes={"layer_errors": rows})
    write_report(replace(report, passes=(record,)), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "Error of the outputs by layer: quantize" in page
    assert "75.0%, 12.5 dB, in floats" in page
    assert "a&lt;b" in page
    assert "The other 12 layers lose less." in page
    json.loads((tmp_path / "report.json").read_text())
