"""The scoreboard of clean-up tools: it must notice every way in which an output can be wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from models.peer_check import count_nodes, describe, difference, judge, span
from models.peer_table import Entry, Row, summary
from models.peers import run_cold

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N, 4] x) => (float[N, 4] y) <float[4] bias = {1.0, -1.0, 0.5, 0.0}>
{
   sum = Add (x, bias)
   y = Relu (sum)
}
"""

BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (bool flag, float[4] x) => (float[4] y)
{
   one = Constant <value = float {1.0}> ()
   y = If (flag) <
      then_branch = yes () => (float[4] a) { s = Add (x, one) a = Relu (s) },
      else_branch = no () => (float[4] b) { b = Neg (x) }
   >
}
"""


def save(text: str, path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_an_equal_file_is_right(tmp_path: Path) -> None:
    original = save(MODEL, tmp_path / "a.onnx")
    verdict = judge(original, original, latency=False)
    assert (verdict.nodes, verdict.max_diff, verdict.failure, verdict.mismatch) == (2, 0.0, "", "")


def test_wrong_values_show(tmp_path: Path) -> None:
    original = save(MODEL, tmp_path / "a.onnx")
    changed = save(MODEL.replace("0.5", "0.51"), tmp_path / "b.onnx")
    found = judge(original, changed, latency=False).max_diff
    assert found is not None
    assert found > 1e-3


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("y", "z", "mismatch"),
        ("N", "1", "failure"),  # the batch size frozen
        ("Relu", "Nonsense", "failure"),
    ],
)
def test_a_changed_interface_or_a_file_that_cannot_run_shows(
    tmp_path: Path, old: str, new: str, field: str
) -> None:
    original = save(MODEL, tmp_path / "a.onnx")
    head, body = MODEL.split("agraph")
    changed = save(f"{head}agraph{body.replace(old, new)}", tmp_path / "b.onnx")
    verdict = judge(original, changed, latency=False)
    assert {"mismatch": verdict.mismatch, "failure": verdict.failure}[field]


def test_latency_of_equal_files_is_about_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.peer_check.ROUND_SECONDS", 0.1)
    original = save(MODEL, tmp_path / "a.onnx")
    ratio = judge(original, original, latency=True).latency
    assert ratio is not None
    assert 0.5 < ratio[0] < 2


def test_difference_minds_shape_type_and_nan() -> None:
    one = np.array([0.0, 10.0], np.float32)
    assert difference("y", one, one + np.float32(1)) == pytest.approx(1.0)
    assert isinstance(difference("y", one, one[:1]), str)
    assert isinstance(difference("y", one, one.astype(np.float64)), str)
    assert isinstance(difference("y", one, np.array([0.0, np.nan], np.float32)), str)
    assert difference("y", one[:0], one[:0]) == 0.0


def test_the_span_is_over_all_runs_and_never_zero() -> None:
    low, high = np.array([1.0, 2.0]), np.array([5.0, np.inf])
    assert span((low, high)) == 4.0
    assert span((low[:1],)) == 1.0
    assert span((np.zeros(3),)) == 1.0


def test_nodes_in_branches_count_and_constants_do_not(tmp_path: Path) -> None:
    assert count_nodes(save(BRANCHES, tmp_path / "a.onnx")) == 4


def test_a_network_that_forgets_its_input_is_told(tmp_path: Path) -> None:
    deaf = MODEL.replace("Add (x, bias)", "Sub (x, x)").replace("sum = ", "none = ")
    deaf = deaf.replace("y = Relu (sum)", "y = Add (none, bias)")
    assert describe(save(deaf, tmp_path / "a.onnx")).response == 0.0
    assert describe(save(MODEL, tmp_path / "b.onnx")).response > 0.1


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("pass", ""),
        ("raise SystemExit('no way')", "exit 1: no way"),
        ("import time; time.sleep(9)", "over 0.5 s"),
        ("import os; os.abort()", "exit -6"),
    ],
)
def test_a_cold_process_is_timed_and_its_failure_kept(
    tmp_path: Path, program: str, said: str
) -> None:
    cost = run_cold([sys.executable, "-S", "-c", program], tmp_path, 0.5)
    assert cost.failure.startswith(said)
    assert bool(cost.failure) == bool(said)
    assert 0 < cost.wall_s < 5


def test_peak_memory_is_the_childs(tmp_path: Path) -> None:
    """Measured from a process of its own: a child starts with its parent's peak memory."""
    script = (
        "import sys; from pathlib import Path; from models.peers import run_cold\n"
        "for size in (0, 200_000_000):\n"
        "    command = [sys.executable, '-S', '-c', f'bytearray({size})']\n"
        "    print(run_cold(command, Path(sys.argv[1]), 60).peak_mb)"
    )
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=root,
    )  # fmt: skip
    small, large = map(float, done.stdout.split())
    assert large - small > 100


def test_a_missing_command_is_a_failure(tmp_path: Path) -> None:
    assert "cannot start" in run_cold(["no-such-command"], tmp_path, 1).failure


def test_the_summary_names_the_best_correct_peer_and_where_we_are_behind() -> None:
    rows = {
        "onnxslim": Row(2.0, 2.0, 100, nodes=5, size_bytes=9, max_diff=1.0),
        "onnxsim": Row(1.0, 1.0, 100, nodes=7, size_bytes=9, max_diff=0.0),
        "graphopt": Row(1.0, 4.0, 100, nodes=8, size_bytes=9, max_diff=0.0),
    }
    lines = list(summary({"net.onnx": Entry("", 10, 9, 1.0, rows)}, 1e-4))
    assert any(line.split()[:6] == ["net.onnx", "9", "8", "7", "onnxsim", "<-"] for line in lines)
    assert any(line.startswith("onnxslim on net.onnx: WRONG") for line in lines)
    ours = next(line for line in lines if line.startswith("graphopt"))
    assert ours.split()[6:8] == ["0.50", "2.00"]
