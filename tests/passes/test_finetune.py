"""finetune: labels teach; without them, or with wrong ones, it says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphopt.errors import DataError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.registry import build
from passes.finetune import Finetune
from tests.asserting import run_model
from tests.train.networks import images, perceptron, small, vectors

QUICK = Finetune(epochs=20, batch=16, precision="float32", rate=0.05)


def top1(graph: Graph) -> float:
    data = vectors(300, seed=8)
    (y,) = run_model(graph, next(data.batches(300)))
    return float((np.asarray(y).argmax(1) == data.labels).mean())


@pytest.mark.parametrize(("loss", "wanted"), [("cross-entropy", 0.85), ("mse", 0.7)])
def test_labels_teach(loss: str, wanted: float) -> None:
    graph = perceptron()
    before = top1(graph)
    context = Context(original=perceptron(), calibration=vectors(300))
    replace(QUICK, loss=loss, label_smoothing=0.1).run(graph, context)
    assert before < 0.5
    assert top1(graph) > wanted
    assert context.notes["epochs"] == 20


def test_labels_are_needed() -> None:
    with pytest.raises(DataError, match="arrays has no labels"):
        QUICK.run(small(), Context(original=small(), calibration=images()))
    with pytest.raises(RecipeError, match="needs inputs to calibrate or train on; give --data"):
        QUICK.run(small(), Context(original=small()))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"loss": "hinge"}, "loss must be cross-entropy, mse or file.py:function, got 'hinge'"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"rate": -1.0}, "rate must be above 0"),
        ({"optimizer": "lbfgs"}, "must be one of 'sgd', 'adamw'"),
    ],
)
def test_nonsense_is_refused_before_anything_is_loaded(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build("finetune", wrong)
