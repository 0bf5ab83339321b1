"""Plans: schedules, and options that make no sense."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import RecipeError
from graphopt.train import Lesson, Plan, Resources
from graphopt.train.optimizing import make_optimizer, set_rate
from graphopt.train.plan import rate_factor

PARTS = st.floats(0, 1)


def test_cosine_after_a_linear_warm_up() -> None:
    plan = Plan(schedule="cosine", warmup=0.2)
    found = [rate_factor(plan, done) for done in (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        found, [0, 0.5, 1, (1 + half) / 2, 0.5, (1 - half) / 2, 0], atol=1e-12
    )


def test_steps_divide_by_ten_twice() -> None:
    plan = Plan(schedule="step", warmup=0.0)
    assert [rate_factor(plan, done) for done in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)] == [
        1, 1, 0.1, 0.1, 0.01, 0.01,
    ]  # fmt: skip


@given(
    done=PARTS, schedule=st.sampled_from(["cosine", "step", "constant"]), warmup=st.floats(0, 0.9)
)
def test_no_rate_is_above_the_plan_s(done: float, schedule: str, warmup: float) -> None:
    plan = Plan(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    assert 0 <= rate_factor(plan, done) <= 1


@pytest.mark.parametrize(
    ("epochs", "minutes", "bound"),
    [(None, None, 10.0), (None, 3.0, np.inf), (2.0, None, 2.0), (2.0, 3.0, 2.0)],
)
def test_ten_epochs_unless_asked(epochs: float | None, minutes: float | None, bound: float) -> None:
    assert Plan(epochs=epochs, minutes=minutes).most_epochs == bound


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0.0}, {"minutes": -1.0}, {"epochs": np.nan}, {"batch": 0}, {"rate": 0.0},
        {"rate": np.inf}, {"momentum": 1.0}, {"warmup": 1.0}, {"weight_decay": -1e-4},
        {"clip": -1.0}, {"holdout": 1.0}, {"augment": ("rotate",)}, {"augment": ("auto", "flip")},
        {"save_seconds": -1.0}, {"variants": -1}, {"shift": 0},
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(RecipeError, match=rf"train: {name} must be .*, got "):
        replace(Plan(), **wrong)  # type: ignore[arg-type]


def test_how_far_to_shift_is_refused_where_nothing_is_shifted() -> None:
    assert Plan(shift=2).shift == 2
    with pytest.raises(RecipeError, match=r"shift must be .*augment=.crop., got 2"):
        Plan(augment=("flip",), shift=2)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"hints": -1.0}, {"attention": np.inf}])
def test_nonsense_lessons_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=f"train: {next(iter(wrong))} must be"):
        Lesson(**wrong)  # type: ignore[arg-type]


def test_unknown_device_is_refused() -> None:
    with pytest.raises(RecipeError, match="auto, cpu or cuda, got 'tpu'"):
        Resources(device="tpu")


def test_plans_need_no_torch() -> None:
    code = "import sys, graphopt.train, passes.distill; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_norms_and_biases_do_not_decay(kind: str) -> None:
    """With gradients of 0, only what decays moves."""
    matrix, bias, kernel = (
        torch.nn.Parameter(torch.ones(size)) for size in ((2, 3), (3,), (2, 3, 1, 1))
    )
    frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    plan = Plan(optimizer=kind, weight_decay=0.1, rate=0.5)  # type: ignore[arg-type]
    optimizer = make_optimizer([matrix, bias, kernel, frozen], plan)
    set_rate(optimizer, plan, 0.02)
    for parameter in (matrix, bias, kernel):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert float(bias.detach().min()) == 1
    assert float(frozen.min()) == 1
    assert float(matrix.detach().max()) < 0.98
    assert float(kernel.detach().max()) < 0.98


def test_nesterov_momentum_by_hand() -> None:
    """v = m v + g; w -= r (g + m v), as Sutskever et al. (2013) in torch's form."""
    weight = torch.nn.Parameter(torch.tensor([[1.0]]))
    plan = Plan(momentum=0.5, weight_decay=0.0, rate=0.1, schedule="constant", warmup=0.0)
    optimizer = make_optimizer([weight], plan)
    value, speed = 1.0, 0.0
    for gradient in (2.0, -1.0, 3.0):
        set_rate(optimizer, plan, 0.5)
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        speed = 0.5 * speed + gradient
        value -= 0.1 * (gradient + 0.5 * speed)
        assert weight.item() == pytest.approx(value, rel=1e-6)
