"""Training on a CUDA device gives what training on the CPU gives, up to rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from graphopt.train import Lesson, Resources, distill
from tests.train.networks import ALONE, QUICK, disturbed, images, small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("augment", [(), ("flip",), ("flip", "crop", "cutout", "mixup")])
def test_a_gpu_learns_what_the_cpu_learns(augment: tuple[str, ...]) -> None:
    plan, found = replace(QUICK, augment=augment), []
    for resources in (ALONE, Resources(device="cuda")):
        graph = disturbed(small())
        distill(graph, small(), images(), plan, Lesson(attention=1.0), resources=resources)
        found.append(graph.constants()["w1"].astype(np.float64))
    np.testing.assert_allclose(found[0], found[1], atol=5e-3)


def test_narrow_numbers_and_channels_last_are_taken_by_themselves() -> None:
    plan = replace(QUICK, precision="auto", layout="auto", epochs=8)
    history = distill(
        disturbed(small()), small(), images(), plan, resources=Resources(device="auto")
    )
    assert (history.device, history.format) == ("cuda", "bf16, channels-last")
    first, last = history.curve[0].held_out, history.curve[-1].held_out
    assert first is not None
    assert last is not None
    assert last < 0.5 * first


def test_a_loss_that_is_not_finite_is_found() -> None:
    plan = replace(QUICK, rate=1e12, clip=0.0, epochs=10)
    history = distill(
        disturbed(small()), small(), images(), plan, resources=Resources(device="cuda")
    )
    assert history.stopped is not None
    assert history.kept_step == 0
