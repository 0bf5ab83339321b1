"""The default with data: 8-bit integers where they pay, and a word where they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx

from tests.asserting import parse
from tests.cli.calling import Run

MODELS = Path(__file__).resolve().parent.parent.parent / "models"


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
