"""The default with data: 8-bit integers where they pay, and a word where they do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.cli import main
from tests.asserting import parse

Run = Callable[..., tuple[int, str, str]]
MODELS = Path(__file__).resolve().parent.parent.parent / "models"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    return call


def test_with_data_weights_become_integers(run: Run, tmp_path: Path) -> None:
    shutil.copy(MODELS / "digits_resnet.onnx", tmp_path / "net.onnx")
    code, _, said = run("optimize", tmp_path / "net.onnx", "--data", "digits", "--no-bench",
                        "--max-drop", "0.01", "--json", tmp_path / "a.json")  # fmt: skip
    assert code == 0, said
    document = json.loads((tmp_path / "a.json").read_text())
    made = {entry["name"]: entry for entry in document["passes"]}
    for name in ("quantize-static", "correct-bias"):
        assert (made[name]["accepted"], made[name]["modified"]) == (True, True)
    assert document["result"]["bytes"] < 0.31 * document["baseline"]["bytes"]
    stored = onnx.load(tmp_path / "net.opt.onnx").graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in stored) > 20


def test_where_integers_do_not_pay_it_says_so(run: Run, tmp_path: Path) -> None:
    text = "tiny (float[N,4] x) => (float[N,4] y) <float[4,4] w> { t = Tanh(x) y = MatMul(t, w) }"
    onnx.save(parse(text), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((32, 4), np.float32))
    code, said, _ = run("optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz")
    assert code == 0
    assert "quantize-static: all stays in floats: integers take" in said
