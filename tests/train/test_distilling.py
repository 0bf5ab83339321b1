"""What a teacher teaches: distances by hand, heads for each kind of output, answers kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from graphopt.data import Dataset
from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.train import Batch, Lesson, distill
from graphopt.train.batches import Outputs
from graphopt.train.distilling import (
    Distillation,
    Head,
    attention_map,
    divergence,
    hint_tensors,
    map_tensors,
)
from graphopt.train.teaching import Teacher
from tests.asserting import parse, run_model
from tests.train.networks import ALONE, QUICK, disturbed, images, perceptron, small, vectors


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores)
    return np.asarray(powers / powers.sum(1, keepdims=True))


def test_divergence_by_hand() -> None:
    rng = np.random.default_rng(0)
    mine, aim = rng.standard_normal((2, 3, 5))
    p, q = softmax(aim / 4), softmax(mine / 4)
    by_hand = 16 * (p * np.log(p / q)).sum(1).mean()
    found = divergence(torch.tensor(mine), torch.tensor(aim), 4.0)
    assert float(found) == pytest.approx(by_hand, rel=1e-9)


def test_gradients_keep_their_size_at_any_temperature() -> None:
    """At high temperatures the divergence is half the squared error of centred scores per class."""
    mine = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    aim = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    apart = mine - aim
    limit = (apart - apart.mean(1, keepdim=True)).square().sum(1).mean() / (2 * 6)
    assert float(divergence(mine, aim, 1e4)) == pytest.approx(float(limit), rel=1e-3)


def test_attention_ignores_scale_and_number_of_channels() -> None:
    maps = torch.rand(2, 3, 4, 4)
    assert torch.allclose(attention_map(5 * maps), attention_map(maps))
    assert torch.allclose(attention_map(torch.cat([maps, maps], 1)), attention_map(maps))
    assert torch.allclose(attention_map(maps).square().sum(1), torch.ones(2))


def test_heads_add_up() -> None:
    heads = (Head("mse", 2.0, 4.0), Head("none"), Head("kl"))
    outputs = (torch.tensor([[1.0]]), torch.tensor([[3]]), torch.tensor([[0.0, 1.0]]))
    taught = (torch.tensor([[3.0]]), torch.tensor([[9]]), torch.tensor([[0.0, 1.0]]))
    loss = Distillation(heads, 2.0)(outputs, Batch((outputs[0],), taught=taught))
    assert float(loss) == pytest.approx(2.0 * (2.0**2) / 4.0)


def test_a_softmax_at_the_end_makes_no_difference() -> None:
    """Both ways the scores before it are what is compared; the graph keeps its softmax."""
    text = """soft (float[N,6] x) => (float[N,4] p)
    <float[6,4] w, float[4] b> {
        y = Gemm(x, w, b)
        p = Softmax<axis=1>(y)
    }"""
    plain = text.replace("p = Softmax<axis=1>(y)", "p = Identity(y)")
    made = []
    for each in (text, plain):
        teacher = Graph.load(parse(each))
        graph = disturbed(teacher)
        history = distill(graph, teacher, vectors(), QUICK, resources=ALONE)
        made.append((graph.constants()["w"].tobytes(), history.curve[-1].held_out))
        assert graph.outputs == ("p",)
    assert made[0] == made[1]
    x = next(vectors().batches(4))["x"]
    (rows,) = run_model(Graph.load(parse(text)), {"x": x})
    assert np.asarray(rows).sum(1) == pytest.approx(1)


@pytest.mark.parametrize("ends", [("p", "q"), ("q", "p")])
def test_a_softmax_that_only_one_of_them_ends_with(ends: tuple[str, str]) -> None:
    """Behind it may stand what one of both lacks: equal networks are equal all the same."""
    text = """soft (float[N,6] x) => (float[N,4] p) <float[6,4] w> {{
        y = MatMul(x, w)
        {} = Softmax<axis=1>(y)
        {}
    }}"""
    bodies = {"p": text.format("p", ""), "q": text.format("q", "p = Identity(q)")}
    student, teacher = (Graph.load(parse(bodies[end])) for end in ends)
    teacher.set_constant("w", 5 * student.constants()["w"].astype(np.float32))
    student.set_constant("w", teacher.constants()["w"])
    history = distill(student, teacher, vectors(), QUICK, resources=ALONE)
    assert history.curve[0].held_out == pytest.approx(0, abs=1e-5)
    off, plan = disturbed(student), replace(QUICK, epochs=12)
    history = distill(off, teacher, vectors(), plan, resources=ALONE)
    first, last = history.curve[0].held_out, history.curve[-1].held_out
    assert first is not None
    assert last is not None
    assert first > 0.01
    assert last < first / 2


def test_bounded_outputs_are_values() -> None:
    """Labels that do not exclude each other are no distribution over classes."""
    text = "m (float[N,6] x) => (float[N,4] y) <float[6,4] w> { a = MatMul(x, w) y = Sigmoid(a) }"
    teacher = Graph.load(parse(text))
    graph = disturbed(teacher)
    found = distill(graph, teacher, vectors(), QUICK, resources=ALONE)
    x = disturbed(teacher)
    wanted = distill(x, teacher, vectors(), QUICK, Lesson(loss="mse"), resources=ALONE)
    assert found.curve == wanted.curve


def test_values_are_compared_by_their_spread() -> None:
    """Regression outputs: a teacher a hundred times as large teaches at the same rate."""
    losses = []
    for factor in (1.0, 100.0):
        teacher = Graph.load(
            parse("r (float[N,6] x) => (float[N,3,2] y) <float[6,6] w, int64[3] s> {"
                  " a = MatMul(x, w) \n y = Reshape(a, s) }")
        )  # fmt: skip
        teacher.set_constant("s", np.array([-1, 3, 2]))
        weights = teacher.constants()["w"].astype(np.float32)
        teacher.set_constant("w", np.float32(factor) * weights)
        graph = teacher.clone()
        graph.set_constant("w", np.float32(0.5 * factor) * weights)
        history = distill(graph, teacher, vectors(), QUICK, resources=ALONE)
        losses.append(history.curve[0].held_out)
    assert losses[0] == pytest.approx(0.25, rel=0.2)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def narrowed() -> Graph:
    """The small network with channels 0 and 2 of its first layer."""
    graph = small()
    for name, axis in (("w0", 0), ("b0", 0), ("w1", 1)):
        graph.set_constant(name, np.take(graph.constants()[name], [0, 2], axis))
    graph.reshape_notice()
    return graph


def test_hints_and_attention_find_tensors_of_one_name() -> None:
    wide, narrow, kept = small(), narrowed(), {"r0": {1: np.array([0, 2])}}
    assert hint_tensors(wide, wide, {}) == ["r0", "r1", "p", "f"]
    assert hint_tensors(narrow, wide, {}) == ["r1", "p", "f"]
    assert hint_tensors(narrow, wide, kept) == ["r0", "r1", "p", "f"]
    assert map_tensors(narrow, wide) == ["r0", "r1"]
    plan = replace(QUICK, epochs=6)
    history = distill(
        narrow, wide, images(), plan, Lesson(hints=1.0, attention=1.0), kept=kept, resources=ALONE
    )
    assert history.kept_step
    assert narrow.outputs == ("y",)


def test_a_hint_is_the_part_that_was_kept() -> None:
    whole = torch.rand(2, 4, 3, 3)
    head = Head("mse", kept=((1, (0, 2)),))
    loss = Distillation((head,), 1.0)((whole[:, [0, 2]],), Batch((whole,), taught=(whole,)))
    assert float(loss) == 0


def test_hints_that_nobody_can_give_are_refused() -> None:
    text = "p (float[N,6] x) => (float[N,4] y) <float[6,4] w> { y = MatMul(x, w) }"
    graph = Graph.load(parse(text))
    for lesson, said in (
        (Lesson(hints=1.0), "hints needs tensors"),
        (Lesson(attention=1.0), "attention needs maps"),
    ):
        with pytest.raises(ModelError, match=f"distill: {said} inside"):
            distill(disturbed(graph), graph, vectors(), QUICK, lesson, resources=ALONE)


@pytest.mark.parametrize(
    ("augment", "variants"),
    [((), 0), ((), 2), (("flip",), 0), (("flip",), 2), (("crop", "flip"), 2)],
)
def test_kept_answers_are_the_teacher_s(
    augment: tuple[str, ...], variants: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    asked: list[int] = []
    compute = Teacher._computed

    def counted(self: Teacher, batch: Batch) -> Outputs:
        asked[-1] += len(batch.inputs[0])
        return compute(self, batch)

    monkeypatch.setattr(Teacher, "_computed", counted)
    for share in (0.1, 0.0):
        monkeypatch.setattr("graphopt.train.teaching._SHARE", share)
        graph = disturbed(small())
        plan = replace(QUICK, epochs=8, augment=augment, variants=variants)
        asked.append(0)
        distill(graph, small(), images(), plan, resources=ALONE)
        made.append(graph.constants()["w1"].astype(np.float64))
    assert asked[0] < asked[1] / 2, "each variant is answered once"
    np.testing.assert_allclose(made[0], made[1], atol=1e-6)


def test_networks_without_a_common_output_are_refused() -> None:
    other = Graph.load(parse("p (float[N,6] x) => (float[N,6] z) { z = Relu(x) }"))
    with pytest.raises(ModelError, match="outputs of the same names"):
        distill(perceptron(), other, vectors(), QUICK, resources=ALONE)


def test_whole_numbers_teach_nothing() -> None:
    text = """p (float[N,6] x) => (int64[N,1] y) <float[6,4] w> {
        a = MatMul(x, w)
        y = ArgMax<axis=1>(a)
    }"""
    graph = Graph.load(parse(text))
    with pytest.raises(ModelError, match="no output of the network is a float tensor"):
        distill(graph, graph.clone(), vectors(), QUICK, resources=ALONE)


def test_teacher_of_another_width_is_refused() -> None:
    graph, teacher = perceptron(), perceptron()
    for name in ("w1", "b1"):
        teacher.set_constant(name, teacher.constants()[name][..., :3])
    teacher.reshape_notice()
    with pytest.raises(ModelError, match=r"output 'y' has shape .*4\), the teacher's .*3\)"):
        distill(graph, teacher, Dataset.from_arrays({"x": np.zeros((64, 6), np.float32)}), QUICK)
