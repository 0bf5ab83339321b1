"""fit: what is learnt, what is left alone, when it ends, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.train import (
    CrossEntropy,
    Hook,
    Training,
    distill,
    finetune,
    fit,
)
from tests.asserting import run_model
from tests.train.networks import ALONE, QUICK, disturbed, images, perceptron, small, vectors


def weights(graph: Graph) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in graph.constants().items()}


def loss_of(graph: Graph, dataset: Dataset) -> float:
    """Cross-entropy in float64, by ONNX Runtime and numpy."""
    (x,) = (batch["x"] for batch in dataset.batches(len(dataset)))
    (y,) = run_model(graph, {"x": x})
    scores = np.asarray(y, np.float64)
    assert dataset.labels is not None
    normal = np.log(np.exp(scores).sum(1))
    return float((normal - scores[np.arange(len(scores)), dataset.labels]).mean())


def test_learns_from_labels() -> None:
    graph, data = perceptron(), vectors(200)
    before = loss_of(graph, vectors(100, seed=2))
    history = finetune(graph, data, CrossEntropy(), replace(QUICK, epochs=20), resources=ALONE)
    assert loss_of(graph, vectors(100, seed=2)) < 0.5 * before
    assert history.steps == 20 * (160 // 16)
    assert set(history.changed) == {"w0", "b0", "w1", "b1"}
    held = [point.held_out for point in history.curve if point.held_out is not None]
    assert len(held) == 11
    assert min(held) == {p.step: p.held_out for p in history.curve}[history.kept_step or 0]


def test_distilling_to_itself_changes_nothing() -> None:
    """Its loss is 0, and so are its gradients; what is best was there before the first step."""
    teacher = perceptron()
    graph = teacher.clone()
    plan = replace(QUICK, weight_decay=0.0)
    history = distill(graph, teacher, vectors(), plan, resources=ALONE)
    for name, old in teacher.constants().items():
        new = graph.constants()[name]
        np.testing.assert_allclose(
            np.asarray(new, np.float32), np.asarray(old, np.float32), atol=1e-5
        )
    assert history.curve[-1].held_out == pytest.approx(0, abs=1e-6)


def test_distilling_comes_closer() -> None:
    teacher = small()
    graph = disturbed(teacher)
    history = distill(graph, teacher, images(120), replace(QUICK, epochs=10), resources=ALONE)
    first, last = history.curve[0].held_out, history.curve[-1].held_out
    assert first is not None
    assert last is not None
    assert last < 0.3 * first


def test_same_seed_same_bytes() -> None:
    made = []
    for seed in (0, 0, 1):
        graph = perceptron()
        finetune(graph, vectors(), CrossEntropy(), QUICK, resources=replace(ALONE, seed=seed))
        made.append(weights(graph))
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_time_budget_is_kept_and_the_rate_gets_to_its_end() -> None:
    rates: list[float] = []

    class Watch(Hook):
        def after_step(self, training: Training, done: float) -> None:
            rates.append(done)

    plan = replace(QUICK, epochs=None, minutes=1.5 / 60)
    history = fit(perceptron(), vectors(), CrossEntropy(), plan, resources=ALONE, hooks=[Watch()])
    assert 1.0 < history.seconds < 6.0  # a busy machine may stall a step
    assert rates == sorted(rates)
    assert rates[-1] > 0.95


def test_an_interruption_leaves_the_graph_alone() -> None:
    class Interrupt(Hook):
        def after_epoch(self, training: Training, done: float) -> None:
            raise KeyboardInterrupt

    graph = perceptron()
    before, threads = weights(graph), torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        fit(graph, vectors(), CrossEntropy(), QUICK, resources=ALONE, hooks=[Interrupt()])
    assert weights(graph) == before
    assert torch.get_num_threads() == threads


class Stop(Exception):
    """Stands for a kill."""


class StopAt(Hook):
    """Fails after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def after_epoch(self, training: Training, done: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_training_gives_the_same_bytes(
    optimizer: Literal["sgd", "adamw"], tmp_path: Path
) -> None:
    plan = replace(
        QUICK, optimizer=optimizer, augment=("flip", "crop", "mixup"), save_seconds=0.0,
        layout="channels-last",
    )  # fmt: skip
    resources = replace(ALONE, checkpoints=tmp_path)
    whole, parted = disturbed(small()), disturbed(small())
    distill(whole, small(), images(), plan, resources=ALONE)
    with pytest.raises(Stop):
        distill(parted, small(), images(), plan, resources=resources, hooks=[StopAt(2)])
    assert len(list(tmp_path.iterdir())) == 1
    history = distill(parted, small(), images(), plan, resources=resources, hooks=[StopAt(9)])
    assert history.resumed_step == 2 * (64 // 16) - 1
    assert weights(parted) == weights(whole)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_training_is_not_taken(tmp_path: Path) -> None:
    plan = replace(QUICK, save_seconds=0.0)
    resources = replace(ALONE, checkpoints=tmp_path)
    with pytest.raises(Stop):
        fit(perceptron(), vectors(), CrossEntropy(), plan, resources=resources, hooks=[StopAt(1)])
    for other, seed in ((replace(plan, rate=0.01), 0), (plan, 1)):
        means = replace(resources, seed=seed)
        history = fit(
            perceptron(), vectors(), CrossEntropy(), other, resources=means, hooks=[StopAt(9)]
        )
        assert history.resumed_step == 0


def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path) -> None:
    plan = replace(QUICK, save_seconds=0.0)
    resources = replace(ALONE, checkpoints=tmp_path)
    with pytest.raises(Stop):
        fit(perceptron(), vectors(), CrossEntropy(), plan, resources=resources, hooks=[StopAt(1)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    history = fit(
        perceptron(), vectors(), CrossEntropy(), plan, resources=resources, hooks=[StopAt(9)]
    )
    assert history.resumed_step == 0


def test_loss_that_is_not_finite_names_the_step_and_keeps_the_best() -> None:
    class Blow(Hook):
        def after_step(self, training: Training, done: float) -> None:
            if done > 0.55:
                with torch.no_grad():
                    training.weights["w0"].fill_(math.nan)

    graph = perceptron()
    history = fit(graph, vectors(), CrossEntropy(), QUICK, resources=ALONE, hooks=[Blow()])
    assert history.stopped is not None
    assert "the loss was nan at step 11;" in history.stopped
    assert "lower the learning rate" in history.stopped
    assert history.kept_step == 8
    assert np.isfinite(graph.constants()["w0"]).all()


def test_without_held_out_rows_the_last_step_is_looked_at_too() -> None:
    class Blow(Hook):
        def after_step(self, training: Training, done: float) -> None:
            with torch.no_grad():
                training.weights["w0"].fill_(1e30)
                training.weights["w1"].fill_(1e30)

    graph, plan = perceptron(), replace(QUICK, epochs=0.01, holdout=0.0)
    before = graph.constants()["w0"].copy()
    history = fit(graph, vectors(), CrossEntropy(), plan, resources=ALONE, hooks=[Blow()])
    assert history.steps == 1
    assert history.stopped is not None
    assert "at step 2;" in history.stopped
    assert np.array_equal(graph.constants()["w0"], before)


def test_a_network_that_gives_nothing_finite_is_not_the_learning_rates_fault() -> None:
    graph = perceptron()
    graph.set_constant("w0", np.full_like(graph.constants()["w0"], np.nan))
    history = fit(graph, vectors(), CrossEntropy(), QUICK, resources=ALONE)
    assert history.stopped is not None
    assert "the loss was nan at step 1;" in history.stopped
    assert "look for what is not finite in the weights and in the data" in history.stopped
