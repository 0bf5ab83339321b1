"""The default with data: 8-bit integers where they pay, and a word where they do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import pytest

from graphopt.quantize.collecting import Effort
from graphopt.quantize.keeping import Gathered, Kept
from passes import quantize_static
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


CHAIN = """chain (float[N,4,6,6] x, int32[N,4,6,6] k, string[N] s)
=> (float[N,4,6,6] y, string[N] u)
<float[4,4,1,1] w0, float[4] b0, float[4,4,1,1] w1, float[4] b1> {
    f = Cast<to=1>(k)
    a = Add(x, f)
    c = Conv<kernel_shape=[1,1]>(a, w0, b0)
    r = Relu(c)
    y = Conv<kernel_shape=[1,1]>(r, w1, b1)
    u = Identity(s)
}"""


def _int8(
    run: Run,
    tmp_path: Path,
    changed: Mapping[str, np.ndarray] = MappingProxyType({}),
    *,
    opset: int = 17,
) -> tuple[int, str, str]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "x": rng.standard_normal((40, 4, 6, 6)).astype(np.float32),
        "k": rng.integers(0, 3, (40, 4, 6, 6)).astype(np.int32),
        "s": np.array(["text"] * 40),
    }
    onnx.save(parse(CHAIN, opset=opset), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", allow_pickle=False, **{**arrays, **changed})
    return run("optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "--passes",
               "quantize-static{pays=false}", "--no-bench")  # fmt: skip


_X = np.random.default_rng(1).standard_normal((40, 4, 6, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x": np.where(np.arange(40)[:, None, None, None] == 3, np.nan, _X)}, "holds NaN"),
        ({"x": np.where(_X > 3, np.inf, _X).astype(np.float32)}, "NaN or infinite"),
        ({"x": _X[:0], "k": np.zeros((0, 4, 6, 6), np.int32), "s": np.array([], "<U4")}, "empty"),
        ({"k": _X}, "takes int32"),
        ({"x": _X[:, :2]}, "'x'"),
    ],
    ids=["nan", "inf", "no rows", "floats for integers", "shape"],
)
def test_inputs_that_cannot_calibrate_take_one_line(
    run: Run, tmp_path: Path, changed: dict[str, np.ndarray], says: str
) -> None:
    if "x" in changed:
        changed["x"] = changed["x"].astype(np.float32)
    code, _, said = _int8(run, tmp_path, changed)
    assert code == 2
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "net.opt.onnx").exists()


@pytest.mark.parametrize(
    ("opset", "changed"),
    [
        (11, {}),
        (17, {"x": np.ones_like(_X)}),
        (17, {"x": _X * np.array([1, 0, 0, 0], np.float32).reshape(4, 1, 1)}),
        (17, {"x": _X * 0, "k": np.zeros(_X.shape, np.int32)}),
    ],
    ids=["old operators", "constant", "dead channels", "zeros"],
)
def test_hard_inputs_work(
    run: Run, tmp_path: Path, opset: int, changed: dict[str, np.ndarray]
) -> None:
    """Integers and text among the inputs of all of them."""
    code, _, said = _int8(run, tmp_path, changed, opset=opset)
    assert code == 0, said
    model = onnx.load(tmp_path / "net.opt.onnx")
    assert model.opset_import[0].version == max(opset, 13)
    stored = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len([tensor for tensor in stored if len(tensor.dims) == 4]) == 2


def test_without_data_or_statistics_it_takes_one_line(run: Run, tmp_path: Path) -> None:
    onnx.save(parse(CHAIN), tmp_path / "net.onnx")
    code, _, said = run("optimize", tmp_path / "net.onnx", "--recipe", "int8-data-free")
    assert code == 2
    assert "needs BatchNormalization" in said
    assert said.count("\n") == 1


def test_quantized_models_stay_unless_asked(run: Run, tmp_path: Path) -> None:
    _int8(run, tmp_path)
    (tmp_path / "net.opt.onnx").rename(tmp_path / "int8.onnx")
    call = "optimize", tmp_path / "int8.onnx", "--data", tmp_path / "data.npz", "--no-bench"
    code, said, _ = run(*call, "--json", tmp_path / "a.json")
    assert code == 0
    assert "left as it is, for the model is quantized already" in said
    passes = json.loads((tmp_path / "a.json").read_text())["passes"]
    assert not any(entry["modified"] for entry in passes)
    code, said, _ = run(*call, "--passes", "quantize-static{requantize=true,pays=false}")
    assert code == 0
    assert "quantized already" not in said


def test_an_interrupted_calibration_goes_on_to_the_same_file(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another calibrator needs no second look at the inputs."""
    monkeypatch.chdir(model.parent)
    x = np.random.default_rng(0).standard_normal((80, 3, 8, 8), dtype=np.float32)
    np.savez("data.npz", x=x)
    monkeypatch.setattr(quantize_static, "Effort", partial(Effort, save_seconds=0.0))

    def command(calibrator: str) -> list[str]:
        steps = f"lossless;quantize-static{{calibrator={calibrator},pays=false}}"
        return ["optimize", "net.onnx", "--data", "data.npz", "--no-bench", "--passes", steps]

    def resumed() -> int:
        entries = json.loads(Path("a.json").read_text())["passes"]
        return int(entries[-1]["notes"]["resumed_inputs"])

    assert run(*command("best"), "-o", "whole.onnx")[0] == 0

    def cut(kept: Kept, gathered: Gathered) -> None:
        saved(kept, gathered)
        if gathered.rows >= 16:
            raise KeyboardInterrupt

    saved = Kept.save
    with monkeypatch.context() as patch:
        patch.setattr(Kept, "save", cut)
        code, _, said = run(*command("best"), "-o", "resumed.onnx", "--workdir", "work")
    assert code == 130
    assert "the same command goes on from there" in said
    for calibrator, rows in (("best", 16), ("entropy", 40)):
        code, _, said = run(*command(calibrator), "-o", f"{calibrator}.onnx", "--workdir", "work",
                            "--threads", "2", "--json", "a.json")  # fmt: skip
        assert code == 0, said
        assert resumed() == rows
    assert Path("best.onnx").read_bytes() == Path("whole.onnx").read_bytes()
    assert Path("entropy.onnx").read_bytes() != Path("whole.onnx").read_bytes()


RAGGED = """ragged (float[N,3,H,W] x) => (float[N,4,H,W] y)
<float[8,3,3,3] w0, float[4,8,1,1] w1> {
    c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0)
    r = Relu(c)
    y = Conv<kernel_shape=[1,1]>(r, w1)
}"""


def test_images_may_differ_in_size(run: Run, tmp_path: Path) -> None:
    onnx.save(parse(RAGGED), tmp_path / "net.onnx")
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def images():\n"
        "    rng = np.random.default_rng(0)\n"
        "    for _ in range(40):\n"
        "        x = rng.standard_normal((1, 3, *rng.integers(4, 30, 2)))\n"
        "        yield {'x': x.astype(np.float32)}\n"
    )
    command = ["optimize", tmp_path / "net.onnx", "--data", f"{tmp_path / 'own.py'}:images"]
    steps = "lossless;quantize-static{pays=false},correct-bias"
    code, out, said = run(*command, "--passes", steps, "--threads", "2")
    assert code == 0, said
    stored = onnx.load(tmp_path / "net.opt.onnx").graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in stored) >= 2
    assert "sqnr" in out
    code, _, said = run(*command, "--passes", "distill{epochs=1}", "--no-bench")
    assert code == 2
    assert "rows of several shapes, which make no batch together; pad them to one shape" in said
    assert said.count("\n") == 1
