"""Places to write to: nothing that a command reads is replaced, and nothing but files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.errors import TargetError
from graphopt.files import atomic_file
from tests.cli.calling import Run
from tests.samples import convnet


def _refused(run: Run, folder: Path, *arguments: object, says: str) -> None:
    """The request is refused in one line, and the folder is as it was."""
    before = {entry: entry.read_bytes() for entry in folder.rglob("*") if entry.is_file()}
    code, shown, said = run(*arguments)
    assert code == 2, said
    assert says in said
    assert len(said.strip().splitlines()) == 1
    assert not shown, "found before any work"
    assert before == {entry: entry.read_bytes() for entry in folder.rglob("*") if entry.is_file()}


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A model whose weights lie in net.onnx.data."""
    path = tmp_path / "net.onnx"
    onnx.save(
        convnet(), path, save_as_external_data=True, location="net.onnx.data", size_threshold=0
    )
    return path


@pytest.mark.parametrize("replaced", ["net.onnx", "net.onnx.data", "link"])
@pytest.mark.parametrize("verb", ["optimize", "inspect", "bench", "compare", "pack"])
def test_json_replaces_no_input(run: Run, beside: Path, verb: str, replaced: str) -> None:
    folder = beside.parent
    (folder / "link").symlink_to(beside)
    others = {"compare": [beside], "pack": [folder / "net.gopt"]}.get(verb, [])
    target = folder / replaced
    _refused(run, folder, verb, beside, *others, "--json", target, says="reads that file")


def test_json_and_the_result_go_apart(run: Run, model: Path) -> None:
    folder = model.parent
    both = folder / "both"
    for arguments in (["optimize", model, "-o", both], ["pack", model, both]):
        _refused(run, folder, *arguments, "--json", both, says="the result goes there")


def test_data_recipes_and_code_are_kept(run: Run, model: Path) -> None:
    folder = model.parent
    data, code = folder / "data.npz", folder / "code.py"
    np.savez(data, x=np.zeros((4, 3, 8, 8), np.float32))
    code.write_text("def score(outputs, labels):\n    return 1.0\n")
    read = ("--data", f"{data}[:4]", "--metric", f"{code}:score")
    for target in (data, code):
        for option in ("-o", "--json"):
            _refused(run, folder, "optimize", model, *read, option, target, says="reads that file")


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_devices_and_pipes_are_no_files(run: Run, model: Path, option: str) -> None:
    """In a container /dev/null itself would become a file."""
    pipe = model.parent / "pipe"
    os.mkfifo(pipe)
    _refused(run, model.parent, "optimize", model, option, pipe, says="is no regular file")
    assert pipe.is_fifo()
    with pytest.raises(TargetError, match="no regular file"), atomic_file(pipe):
        pass
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    "option",
    ["-o", "--json", "--report", "--workdir", "--data", "--eval-data", "--preprocess", "--metric",
     "--recipe", "--target-latency"],
)  # fmt: skip
def test_an_option_given_nothing_is_not_left_out(run: Run, model: Path, option: str) -> None:
    """A script's variable that was not set must not turn calibration off, say."""
    _refused(run, model.parent, "optimize", model, option, "", says="is empty")


def test_names_that_no_file_can_have(run: Run, model: Path) -> None:
    long = "n" * 300
    _refused(run, model.parent, "inspect", long, says="File name too long")
    _refused(run, model.parent, "optimize", model, "-o", long, says="File name too long")
    _refused(run, model.parent, "optimize", model, "--data", long, "--json", model, says="reads")


def test_inspect_looks_at_its_target_first(run: Run, model: Path) -> None:
    _refused(run, model.parent, "inspect", model, "--json", model.parent, says="is a directory")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write to")
@pytest.mark.parametrize("option", ["-o", "--json", "--report"])
def test_places_are_tried_before_the_work(run: Run, model: Path, option: str) -> None:
    """Hours of training would be lost at the end."""
    target = "/proc/made"
    says = f"{option} {target}: cannot be written"
    _refused(run, model.parent, "optimize", model, option, target, says=says)
