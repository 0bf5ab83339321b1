"""Trainings asked for on the command line: what goes on where it was, what is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from graphopt.train.snapshots import Checkpoint, Saved
from tests.cli.calling import Run


@pytest.fixture
def model(model: Path) -> Path:
    """The small network, with inputs and labels beside it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((48, 3, 8, 8), dtype=np.float32)
    np.savez(model.with_name("data.npz"), x=x, labels=rng.integers(0, 10, 48))
    return model


def test_gradients_on_all_cores(run: Run, model: Path) -> None:
    steps = "remove-channels{importance=taylor,align=1},refit{joint=1}"
    data = ["--data", model.with_name("data.npz"), "--threads", "0", "--no-bench"]
    code, _, said = run("optimize", model, "--passes", steps, *data)
    assert code == 0, said


EXACT = "precision=float32,layout=contiguous"
"""What is fastest is not always the same."""

LATE = "remove-channels{align=1};"
"""What would run before a training."""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["finetune{loss=absent.py:f}"], "finetune: loss: there is no file absent.py"),
        (["finetune{loss=own.py:losss}"], "own.py has no function 'losss'; did you mean 'loss'?"),
        (["finetune{loss=broken.py:f}"], "broken.py:f raised ModuleNotFoundError"),
        (["finetune", "--metric", "absent.py:f"], "metric: there is no file absent.py"),
        (["finetune", "--metric", "top-1"], "did you mean 'top1'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_read(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    """The model is not looked at: there is none."""
    monkeypatch.chdir(model.parent)
    Path("own.py").write_text("def loss(outputs, labels): ...\n")
    Path("broken.py").write_text("import no_such_module\n")
    steps, *more = arguments
    code, out, said = run(
        "optimize", "no.onnx", "--data", "no.npz", "--passes", LATE + steps, *more
    )
    assert (code, out) == (2, "")
    assert says in said


def test_labels_are_asked_for_before_anything_runs(run: Run, model: Path) -> None:
    data = model.with_name("plain.npz")
    np.savez(data, x=np.zeros((8, 3, 8, 8), np.float32))
    code, _, said = run("optimize", model, "--data", data, "--passes", f"{LATE}finetune")
    assert code == 2
    assert "pass 'finetune': " in said
    assert "has no labels; give class folders" in said


def test_a_loss_of_the_users_trains(run: Run, model: Path) -> None:
    own = model.with_name("own.py")
    own.write_text(
        "from torch.nn import functional\n"
        "def loss(outputs, labels):\n"
        "    return functional.cross_entropy(outputs[0], labels)\n"
    )
    steps = f"finetune{{loss='{own}:loss',epochs=1,{EXACT}}}"
    data = ["--data", model.with_name("data.npz"), "--no-bench"]
    code, out, said = run("optimize", model, "--passes", steps, *data)
    assert code == 0, said
    assert "finetune\tlossy\tyes" in out
    assert "finetune: 1 epoch, 1 step of 24 rows; loss " in out


@dataclass
class _Cut:
    """Stands for a checkpoint's `save`: interrupts the run when one has been written often."""

    save: Callable[[Checkpoint, Saved], None]
    left: int

    def __call__(self, checkpoint: Checkpoint, saved: Saved) -> None:
        self.save(checkpoint, saved)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("first", ["", "remove-channels{align=1,ratio=0.5};"])
def test_a_training_goes_on_where_it_was_interrupted(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The file is the same, byte for byte, as that of a run that nobody interrupted."""
    monkeypatch.chdir(model.parent)
    command = ["optimize", "net.onnx", "--data", "data.npz", "--seed", "3", "--no-bench"]
    command += ["--passes", f"{first}distill{{{EXACT},epochs=4,batch=8,save_seconds=0,holdout=0}}"]
    assert run(*command, "-o", "whole.onnx", "--workdir", "one")[0] == 0
    with monkeypatch.context() as patch:
        cut = _Cut(Checkpoint.save, 5)
        patch.setattr(Checkpoint, "save", lambda *given: cut(*given))
        code, out, said = run(*command, "-o", "resumed.onnx", "--workdir", "two")
    assert (code, out) == (130, "")
    assert "the same command goes on from there" in said
    assert not Path("resumed.onnx").exists()
    code, out, said = run(*command, "-o", "resumed.onnx", "--workdir", "two")
    assert code == 0, said
    assert "distill: 4 epochs, 12 steps of 8 rows; gone on from step 5; loss " in out
    assert Path("resumed.onnx").read_bytes() == Path("whole.onnx").read_bytes()
    assert Path("resumed.onnx").read_bytes() != Path("net.onnx").read_bytes()
    assert not list(Path("two/checkpoints").iterdir())
