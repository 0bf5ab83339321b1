"""What people meet first: requests refused at once, numbers that read well, names as they are."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.manager import Measured, PassRecord, Report, Size
from graphopt.report import (
    change,
    loss,
    macs,
    score,
    significant,
    strict_json,
    threads,
    write_report,
)
from graphopt.runtime import BenchResult, Latency
from tests.cli.calling import Run


@pytest.fixture
def model(model: Path) -> Path:
    """The small network, with inputs beside it."""
    data = np.random.default_rng(0).random((8, 3, 8, 8), np.float32)
    np.savez(model.with_name("data.npz"), x=data)
    return model


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seed", "-1"], "--seed"),
        (["--threads", "100000"], "--threads"),
        (["--device", "tpu"], "optimize: Invalid value for '--device'"),
        (["--data", "data.npz", "--max-drop", "nan"], "a number from 0"),
        (["--data", "data.npz", "--max-drop", "-1"], "a number from 0"),
        (["--data", "cifar10:256"], "256 rows are cifar10[:256]"),
        (["--preprocess", "unit"], "give --data"),
        (["--target-latency", "0.5x", "--no-bench"], "give one of them"),
        (["--json", "."], "is a directory"),
        (["--json", "absent/out.json"], "no directory absent"),
        (["--report", "data.npz"], "is a file"),
        (["--recipe", "absent.yaml"], "cannot be read (No such file or directory)"),
    ],
)
def test_refused_before_any_work(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(model.parent)
    code, out, said = run("optimize", "net.onnx", *arguments)
    assert (code, out) == (2, "")
    assert says in said
    assert len(said.splitlines()) == 1
    assert sorted(entry.name for entry in model.parent.iterdir()) == ["data.npz", "net.onnx"]


@pytest.mark.parametrize("verb", [["optimize", "."], ["optimise"], ["optimize"], ["bench", "no"]])
def test_wrong_calls_take_one_line(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    monkeypatch.chdir(model.parent)
    code, _, said = run(*verb)
    assert code == 2
    assert said.startswith("graphopt: ")
    assert len(said.splitlines()) == 1


def test_the_manual_writes_options_as_they_are_given(run: Run) -> None:
    code, out, _ = run("passes", "distill")
    assert code == 0
    assert "augment\ta list, as [a, b], each text\t[auto]" in out.splitlines()
    assert "epochs\ta number or null\tnull" in out.splitlines()
    assert "Training ends after `epochs` or `minutes`" in out  # what all that train have in common
    assert "Class scores (rows, classes) are compared" in out


def test_json_of_a_metric_without_bounds(run: Run, model: Path) -> None:
    """Equal outputs have an infinite signal-to-noise ratio, which JSON cannot say."""
    folder = model.parent
    data = ["--data", folder / "data.npz", "--metric", "sqnr"]
    code, _, said = run("optimize", model, "--no-bench", *data, "--json", folder / "a.json",
                        "--report", folder / "report")  # fmt: skip
    assert code == 0, said
    for file in (folder / "a.json", folder / "report" / "report.json"):
        assert _strict(file)["baseline"]["metric"] is None
    code, _, said = run("compare", model, model, *data, "--json", folder / "b.json")
    assert code == 0, said
    assert _strict(folder / "b.json")["metric"]["a"] is None


def _strict(file: Path) -> dict[str, dict[str, object]]:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    document: dict[str, dict[str, object]] = json.loads(file.read_text(), parse_constant=refuse)
    return document


def test_target_that_could_not_be_measured_is_not_met(run: Run, tmp_path: Path) -> None:
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [shape], [result])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx"
    )
    code, out, _ = run("optimize", tmp_path / "net.onnx", "--target-latency", "0.5x")
    assert code == 1
    assert "not met: target latency: not measured" in out


def test_compare_shows_the_files(run: Run, model: Path) -> None:
    assert run("optimize", model, "--no-bench")[0] == 0
    smaller = model.with_name("net.opt.onnx")
    code, out, _ = run("compare", model, smaller)
    assert code == 0
    assert f"file (bytes)\t{model.stat().st_size:,}\t" in out


def test_factory_is_called_once(run: Run, tmp_path: Path) -> None:
    """Its weights may be random: the model that is described is the one that runs."""
    (tmp_path / "net.py").write_text(
        "from pathlib import Path\n"
        "import torch\n"
        "def make():\n"
        f"    with Path({str(tmp_path / 'calls')!r}).open('a') as file:\n"
        "        file.write('x')\n"
        "    return torch.nn.Linear(3, 2), torch.zeros(1, 3)\n"
    )
    made = f"{tmp_path / 'net.py'}:make"
    assert run("optimize", made, "-o", tmp_path / "out.onnx", "--no-bench")[0] == 0
    (tmp_path / "calls").unlink()
    code, _, said = run("compare", made, tmp_path / "out.onnx")
    assert code == 0, said
    assert (tmp_path / "calls").read_text() == "x"


@pytest.mark.parametrize(
    ("value", "text"),
    [(6.0, "6.00"), (0.004756, "0.00476"), (1234.5, "1,234"), (0, "0")],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


def test_numbers() -> None:
    assert (change(100, 99), change(1000, 1000.1), change(0, 5)) == ("-1.0 %", "", "")
    assert (score(None), score(0.98765), score(4.7e-13)) == ("", "0.9877", "4.70e-13")
    known, partly = Size(1, 1, 7, 1, {}), Size(1, 1, 7, 1, {"Conv": 2})
    assert (macs(known), macs(partly)) == ("7", "at least 7")
    assert macs(replace(partly, macs=0)) == "unknown"
    assert (threads(0), threads(1), threads(2)) == ("all threads", "1 thread", "2 threads")
    report = Report("1", 0, Measured(known), Measured(known), (), max_drop=0.01, drop=0.002)
    assert loss(report) == "drop 0.0020 of 0.01 allowed"
    assert (loss(replace(report, drop=-0.25)), loss(replace(report, drop=None))) == (
        "gain 0.2500",
        "",
    )
    assert json.loads(strict_json({"a": [float("nan"), 1.5]})) == {"a": [None, 1.5]}


def test_names_are_shown_as_they_are(model: Path) -> None:
    """On a terminal neither markup nor emoji codes are read into names."""
    odd = model.with_name("[bold]:x:[/red].onnx".replace("/", "%"))
    model.rename(odd)
    said = _on_terminal("optimize", odd.name, "--no-bench", cwd=odd.parent)
    assert "written: [bold]:x:[%red].opt.onnx" in said


def test_narrow_terminals_cut_no_numbers(model: Path) -> None:
    said = _on_terminal("bench", "net.onnx", "--against", "net.onnx", cwd=model.parent)
    assert "…" not in said
    assert " to " in said


def _on_terminal(*arguments: str, cwd: Path) -> str:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "graphopt", *arguments], stdout=theirs, stderr=theirs, cwd=cwd,
            env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        said = b""
        try:
            while chunk := terminal.read(4096):
                said += chunk
        except OSError:
            pass  # how Linux ends a terminal
        assert process.wait() == 0, said
    return said.decode()


def test_page_lists_idle_passes_once_and_colours_no_noise(tmp_path: Path) -> None:
    size = Size(2, 10, 100, 1000, {})
    times = [Latency(6.0, 5.9, 6.3), Latency(5.99, 5.9, 6.2)]
    idle = PassRecord("fold-shapes", {}, "exact", 0.0, False, size, size)
    busy = replace(idle, name="fold-batch-norm", modified=True, after=replace(size, nodes=1))
    bench = BenchResult(times[0], times[1], 0.998, (0.99, 1.01), 50, 1)
    measured = [Measured(size, latency) for latency in times]
    report = Report("1", 0, measured[0], measured[1], (busy, idle, idle), bench=bench)
    write_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Nothing to do: fold-shapes.</p>" in page
    assert "<td>fold-shapes</td>" not in page
    assert "<td>fold-batch-norm</td>" in page
    assert '<span class="soft">-0.2 %</span>' in page


@pytest.mark.parametrize(
    "returned",
    ["x", "(x, np.arange(8) % 3)", "{'x': x}", "list(x)", "({'x': row[None]} for row in x)"],
)
def test_what_a_function_may_return_as_data(run: Run, model: Path, returned: str) -> None:
    """Where the model has one input its name may be left out, and so may the axis of the batch."""
    code = model.parent / "code.py"
    code.write_text(
        "import numpy as np\n"
        "def data():\n"
        "    x = np.ones((8, 3, 8, 8), np.float32)\n"
        f"    return {returned}\n"
    )
    steps = ("--passes", "fold-constants", "--no-bench")
    done, _, said = run("optimize", model, *steps, "--data", f"{code}:data")
    assert done == 0, said
