"""What only whole processes show: plugins, kills, interrupts, imports, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

PLUGIN = Path(__file__).resolve().parent.parent / "plugin"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example plugin is installed."""
    place = tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("source")
    for file in PLUGIN.rglob("*"):
        if file.suffix in (".py", ".toml"):
            (copy / file.relative_to(PLUGIN)).parent.mkdir(exist_ok=True)
            (copy / file.relative_to(PLUGIN)).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "--target", str(place), str(copy)], check=True
    )
    return {**os.environ, "PYTHONPATH": str(place)}


def _graphopt(
    *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "graphopt", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        cwd=cwd,
    )


def test_plugin_pass_is_listed_and_run(plugin: dict[str, str], model: Path) -> None:
    assert "relabel-nodes" in _graphopt("passes", env=plugin).stdout
    passes = "relabel-nodes{prefix=layer}"
    done = _graphopt("optimize", model, "--no-bench", "--passes", passes, env=plugin)
    assert done.returncode == 0, done.stderr
    names = [node.name for node in onnx.load(model.with_name("net.opt.onnx")).graph.node]
    assert names == [f"layer{place}" for place in range(6)]


def _start(model: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """Start a run and return when its first stage is kept and its second one waits."""
    stages = model.parent / "work" / "stages"
    # What a shell starts in the background ignores interrupts, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "graphopt", *_waiting(model)],
        env=env,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while not list(stages.glob("*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    return process


def _waiting(model: Path) -> list[str]:
    passes = f"relabel-nodes;wait-for{{file={model.parent / 'go'}}}"
    return ["optimize", str(model), "--no-bench", "--passes", passes,
            "--workdir", str(model.parent / "work"),
            "--json", str(model.parent / "out.json")]  # fmt: skip


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_stopped_run_resumes(plugin: dict[str, str], model: Path, sent: signal.Signals) -> None:
    process = _start(model, plugin)
    process.send_signal(sent)
    _, said = process.communicate(timeout=300)
    assert process.returncode == (130 if sent is signal.SIGINT else -signal.SIGKILL)
    if sent is signal.SIGINT:
        assert "interrupted" in said
    assert not model.with_name("net.opt.onnx").exists()
    (model.parent / "go").touch()
    done = _graphopt(*_waiting(model), env=plugin)
    assert done.returncode == 0, done.stderr
    passes = json.loads((model.parent / "out.json").read_text())["passes"]
    assert [(entry["name"], entry["cached"]) for entry in passes] == [
        ("relabel-nodes", True),
        ("wait-for", False),
    ]


@pytest.mark.parametrize("code", ["import graphopt", "from graphopt.cli import main; main(['-h'])"])
def test_light_imports(code: str) -> None:
    probe = (
        f"import atexit, sys\n"
        f"atexit.register(lambda: print(sorted({{'torch', 'onnxruntime'}} & sys.modules.keys())))\n"
        f"{code}"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_processes_beside_the_first_write_and_say_nothing(model: Path) -> None:
    torchrun = {**os.environ, "TORCHELASTIC_RUN_ID": "none", "RANK": "1"}
    done = _graphopt("optimize", model, "--json", model.with_name("out.json"), env=torchrun)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not model.with_name("net.opt.onnx").exists()
    assert not model.with_name("out.json").exists()


def test_pipe_gets_plain_text(model: Path) -> None:
    done = _graphopt("optimize", model, "--no-bench")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""
    assert "\t" in done.stdout


def test_own_folder_named_passes_is_named(model: Path, tmp_path: Path) -> None:
    """A user's folder `passes` shadows ours: the message says so."""
    shadow = tmp_path / "passes"
    shadow.mkdir()
    (shadow / "__init__.py").touch()
    done = _graphopt("passes", env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 2
    assert str(shadow) in done.stderr
    assert "rename" in done.stderr
