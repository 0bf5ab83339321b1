"""Bad input: one clear line, exit code 2, the input untouched, no half-written output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from graphopt.ir import writing
from tests.cli.calling import Run
from tests.samples import convnet


def _refused(run: Run, model: Path, *arguments: object, says: str) -> None:
    """The request is refused in one line, and the folder is as it was."""
    before = {entry: entry.read_bytes() for entry in model.parent.rglob("*") if entry.is_file()}
    code, _, said = run("optimize", model, "--no-bench", *arguments)
    assert code == 2, said
    assert says in said
    assert len(said.strip().splitlines()) == 1
    after = {entry: entry.read_bytes() for entry in model.parent.rglob("*") if entry.is_file()}
    assert before == after


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, I am a text file, not a model\n",
        bytes(range(256)) * 4,
        np.random.default_rng(3).bytes(5000),
        convnet().SerializeToString()[:-40],
        convnet().SerializeToString()[:300],
    ],
    ids=["empty", "text", "counting", "random", "truncated", "cut"],
)
def test_not_a_model(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    _refused(run, path, says="bad.onnx")


def test_absent_file_and_directory(run: Run, tmp_path: Path) -> None:
    _refused(run, tmp_path / "absent.onnx", says="No such file")
    folder = tmp_path / "folder"
    folder.mkdir()
    _refused(run, folder, "-o", tmp_path / "out.onnx", says="is a directory")


def _external(path: Path, location: str) -> None:
    model = convnet()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "link.bin", ""])
def test_external_data_outside_the_folder(run: Run, tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(8 * 3 * 3 * 3 * 4))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    _external(folder / "net.onnx", location)
    _refused(run, folder / "net.onnx", says="leaves the model's folder")


def test_external_data_missing_or_short(run: Run, tmp_path: Path) -> None:
    _external(tmp_path / "net.onnx", "w.bin")
    _refused(run, tmp_path / "net.onnx", says="cannot be read")
    (tmp_path / "w.bin").write_bytes(bytes(10))
    _refused(run, tmp_path / "net.onnx", says="has 10 bytes, 864 are needed")


def _graph(*nodes: onnx.NodeProto) -> bytes:
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", floats, [2])],
        [helper.make_tensor_value_info("y", floats, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (
            [
                helper.make_node("Add", ["x", "b"], ["a"], name="first"),
                helper.make_node("Relu", ["a"], ["b"]),
                helper.make_node("Relu", ["b"], ["y"]),
            ],
            "cycle",
        ),
        (
            [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])],
            "'y': defined 2 times",
        ),
        ([helper.make_node("Add", ["x", "nowhere"], ["y"])], "'nowhere' is produced nowhere"),
        ([helper.make_node("Relu", ["x"], ["z"])], "output 'y': produced nowhere"),
        ([helper.make_node("Relu", ["x"], ["y"], alpha=0.5)], "Unrecognized attribute: alpha"),
        ([helper.make_node("Relu", ["x", "x"], ["y"])], "has input size 2"),
        ([helper.make_node("Upsample", ["x"], ["y"])], "Upsample is deprecated"),
    ],
)
def test_impossible_graphs(
    run: Run, tmp_path: Path, nodes: list[onnx.NodeProto], says: str
) -> None:
    (tmp_path / "net.onnx").write_bytes(_graph(*nodes))
    _refused(run, tmp_path / "net.onnx", says=says)


@pytest.mark.parametrize("domain", ["nobody.knows", ""])
def test_unknown_operators_are_carried_and_said_to_be_unchecked(
    run: Run, tmp_path: Path, domain: str
) -> None:
    """In the standard domain they may be of a later operator set than this machine's."""
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Mystery", ["i"], ["y"], domain=domain),
    ]
    (tmp_path / "net.onnx").write_bytes(_graph(*nodes))
    code, *_ = run("optimize", tmp_path / "net.onnx", "--json", tmp_path / "out.json")
    assert code == 0
    kept = onnx.load(tmp_path / "net.opt.onnx")
    assert [node.op_type for node in kept.graph.node] == ["Mystery"]
    assert "not checked" in (tmp_path / "out.json").read_text()


def test_a_model_without_nodes(run: Run, tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(_graph())
    model.graph.output[0].name = "x"
    onnx.save(model, tmp_path / "net.onnx")
    assert run("inspect", tmp_path / "net.onnx")[0] == 0
    assert run("optimize", tmp_path / "net.onnx")[0] == 0


def test_a_metric_that_is_no_number(run: Run, model: Path) -> None:
    """No comparison with NaN fails, so any loss would be within the budget."""
    code = model.parent / "code.py"
    code.write_text(
        "import numpy as np\n"
        "def data():\n"
        "    return np.zeros((4, 3, 8, 8), np.float32)\n"
        "def score(outputs, labels):\n"
        "    return float('nan')\n"
    )
    options = ("--data", f"{code}:data", "--metric", f"{code}:score", "--max-drop", "0.01")
    _refused(run, model, "--passes", "fold-constants", *options, says="is NaN for the original")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recipe", "losless"], "did you mean 'lossless'"),
        (["--recipe", "absent.yaml"], "cannot be read"),
        (["--passes", "fold-bach-norm"], "did you mean 'fold-batch-norm'"),
        (["--passes", "fold-batch-norm{epsilon=1}"], "no option 'epsilon'"),
        (["--passes", "fold-constants{limit_bytes=many}"], "must be a whole number, got 'many'"),
        (["--passes", "fold-constants", "--recipe", "lossless"], "give one of them"),
        (["--target-latency", "fast"], "neither a ratio"),
        (["--max-drop", "0.1"], "give --data"),
        (["--data", "absent.npz"], "there is no file absent.npz"),
        (["--data", "absent.py"], "there is no file absent.py"),
        (["--data", __file__], "say which function"),
        (["--recipe", "zzz"], "`graphopt passes` and `graphopt recipes` list"),
        (["--data", "digitz"], "digits"),
    ],
)
def test_wrong_requests(run: Run, model: Path, arguments: list[str], says: str) -> None:
    _refused(run, model, *arguments, says=says)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((4, 3, 9, 8), np.float32)}, "9"),
        ({"x": np.zeros((4, 3, 8, 8), np.float64)}, "float64"),
        ({"z": np.zeros((4, 3, 8, 8), np.float32)}, "'x'"),
    ],
    ids=["shape", "dtype", "name"],
)
def test_data_that_do_not_fit(
    run: Run, model: Path, arrays: dict[str, np.ndarray], says: str
) -> None:
    np.savez(model.parent / "data.npz", **arrays)  # type: ignore[arg-type]
    _refused(run, model, "--data", model.parent / "data.npz", says=says)


def test_targets_that_cannot_be_meant(run: Run, model: Path) -> None:
    _refused(run, model, "-o", model, says="never changed")
    (model.parent / "alias.onnx").symlink_to(model)
    _refused(run, model, "-o", model.parent / "alias.onnx", says="never changed")
    _refused(run, model, "-o", model.parent / "no" / "out.onnx", says="no directory")
    _refused(run, model, "-o", model.parent, says="is a directory")


def test_targets_that_hold_weights_of_the_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(
        convnet(), path, save_as_external_data=True, location="out.onnx.data", size_threshold=0
    )
    data = tmp_path / "out.onnx.data"
    before = data.read_bytes()
    _refused(run, path, "-o", data, says="out.onnx.data holds weights of the input")
    with monkeypatch.context() as patch:
        patch.setattr(writing, "SINGLE_FILE_LIMIT", 100)
        target = tmp_path / "out.onnx"
        _refused(run, path, "-o", target, says="out.onnx.data holds weights of the input")
    assert run("optimize", path, "-o", tmp_path / "out.onnx", "--no-bench")[0] == 0
    assert data.read_bytes() == before


def test_full_disk_leaves_nothing_behind(model: Path) -> None:
    """A limit on the size of files stands for a full disk: writing fails in the middle."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "from graphopt.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "optimize", str(model), "--no-bench"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert [entry.name for entry in model.parent.iterdir()] == ["net.onnx"]
