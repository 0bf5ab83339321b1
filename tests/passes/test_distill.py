"""distill: the original teaches what was damaged, without labels, within the manager's rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.manager import PassManager
from graphopt.notation import parse as parse_passes
from graphopt.notation import spec
from graphopt.passbase import Context, Pass
from graphopt.recipe import read_steps
from graphopt.refit import noted_traces
from graphopt.registry import build
from passes.distill import Distill
from tests.asserting import parse, run_model
from tests.train.networks import disturbed, images, perceptron, small

QUICK = Distill(
    epochs=6, batch=16, precision="float32", layout="contiguous", rate=0.05, holdout=0.1
)


def agreement(graph: Graph, teacher: Graph) -> float:
    x = next(images(200, seed=9).batches(200))["x"]
    found, wanted = (np.asarray(run_model(each, {"x": x})[0]) for each in (graph, teacher))
    return float((found.argmax(1) == wanted.argmax(1)).mean())


def test_the_original_teaches() -> None:
    teacher = small()
    graph = disturbed(teacher)
    before = agreement(graph, teacher)
    context = Context(original=teacher, calibration=images(200))
    QUICK.run(graph, context)
    assert agreement(graph, teacher) > max(before, 0.9)
    assert context.notes["steps"] == 6 * (180 // 16)
    assert context.notes["format"] == "float32, contiguous"
    assert "unmet" not in context.notes


def _passes(text: str) -> list[Pass]:
    return [step for stage in read_steps(parse_passes(text)) for step in stage.passes]


def test_options_are_those_of_a_plan_and_a_lesson() -> None:
    text = "distill{temperature=2.0,minutes=1.5,augment=[flip, crop],schedule=step}"
    (step,) = _passes(text)
    assert step == Distill(temperature=2.0, minutes=1.5, augment=("flip", "crop"), schedule="step")
    (again,) = _passes(spec(step))
    assert again == step
    with pytest.raises(RecipeError, match="temperature must be above 0"):
        build("distill", {"temperature": 0})
    with pytest.raises(RecipeError, match="epochs must be above 0"):
        build("distill", {"epochs": 0})


def test_needs_inputs() -> None:
    with pytest.raises(RecipeError, match="distill: needs inputs to calibrate or train on"):
        Distill().run(small(), Context(original=small()))
    with pytest.raises(RecipeError, match="pass 'distill': needs inputs"):
        PassManager(["distill"]).run(small())


def test_a_loss_that_is_not_finite_is_reported() -> None:
    context = Context(original=small(), calibration=images())
    graph = disturbed(small())
    before = graph.content_hash()
    replace(QUICK, rate=1e12, clip=0.0).run(graph, context)
    assert "the weights of step 0 are kept; lower the learning rate" in str(context.notes["unmet"])
    assert graph.content_hash() == before


def test_what_cannot_be_trained_through_ends_its_stage_only() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>
    p (float[N,6] x) => (float[N,4] y) <float[6,4] w, float[4] b> {
        a = com.microsoft.FastGelu(x)
        i = Identity(a)
        y = Gemm(i, w, b)
    }"""
    data = Dataset.from_arrays({"x": np.zeros((64, 6), np.float32)})
    result = PassManager(["distill"]).run(Graph.load(parse(text)), data=data, measure=False)
    (record,) = result.report.passes
    assert not record.accepted
    assert "FastGelu" in str(record.reason)


def test_a_killed_run_leaves_a_checkpoint_in_the_work_directory(tmp_path: Path) -> None:
    seen: list[list[Path]] = []

    class Watch:
        def started(self, step: str) -> None: ...

        def progress(self, what: str, fraction: float) -> None:
            seen.append(list((tmp_path / "checkpoints").glob("*.pt")))

        def finished(self, record: object) -> None: ...

    step = replace(QUICK, epochs=None, minutes=0.05, save_seconds=0.0)  # longer than reports wait
    PassManager([{"distill": dict(step.options())}]).run(
        perceptron(),
        data=Dataset.from_arrays({"x": np.ones((200, 6), np.float32)}),
        workdir=tmp_path,
        measure=False,
        watcher=Watch(),
    )
    assert any(seen)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_a_cut_and_what_pruning_notes_are_apart() -> None:
    """Channels are removed, weights pruned, and what is left is trained with hints."""
    teacher = small()
    graph = teacher.clone()
    context = Context(original=teacher, calibration=images(200))
    for step in _passes("remove-channels{ratio=0.3,align=1},prune-weights{sparsity=0.5}"):
        step.run(graph, context)
    assert noted_traces(graph)
    pruned = {name: array == 0 for name, array in graph.constants().items()}
    assert sum(int(zeros.sum()) for zeros in pruned.values()) > 20
    replace(QUICK, hints=1.0).run(graph, context)
    for name, array in graph.constants().items():
        np.testing.assert_array_equal(array[pruned[name]] != 0, 0)
