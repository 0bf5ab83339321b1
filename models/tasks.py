"""The classification tasks that reference networks are trained on and measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from graphopt import data

__all__ = ["TASKS", "Examples", "Schedule", "Task", "augmented", "fit", "top1", "torch_logits"]

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Examples:
    """Images, (rows, channels, height, width), and the class of each."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, count: int) -> Examples:
        """Keep the first `count` rows."""
        return Examples(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: SGD, Nesterov momentum 0.9, one rise to `peak_rate` and back.

    Training images are shifted by up to `shift` pixels; with `mirror` half of them are mirrored.
    """

    epochs: int
    batch_size: int = 128
    peak_rate: float = 0.1
    weight_decay: float = 5e-4
    shift: int = 0
    mirror: bool = False


@dataclass(frozen=True)
class Task:
    """A named data set with a fixed split, the shape of its images, and how to learn it.

    The name is one that `graphopt.data` knows; its normalisation is the one usual there.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    schedule: Schedule

    def examples(self, split: Literal["train", "test"]) -> Examples:
        """Read the rows to learn from, or the held-out rows that measure accuracy."""
        inputs = (data.InputSpec("image", ("N", *self.shape), np.dtype(np.float32)),)
        rows = data.open(self.name, inputs, split=split)
        assert rows.labels is not None, "named data sets have labels"
        (everything,) = rows.batches(len(rows))
        return Examples(everything["image"], rows.labels)

    def train(
        self,
        network: nn.Module,
        *,
        seed: int = 0,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        """Train `network` in place by the schedule and leave it in evaluation mode."""
        examples = self.examples("train")
        fit(network, examples, self.schedule, seed=seed, device=device, progress=progress)

    def evaluate(self, network: nn.Module, *, device: str = "cpu") -> float:
        """Measure the network's top-1 accuracy on the held-out rows."""
        test = self.examples("test")
        return top1(torch_logits(network, test, device=device), test.labels)


def fit(
    network: nn.Module,
    examples: Examples,
    schedule: Schedule,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Train `network` in place and leave it in evaluation mode.

    The seed decides order and augmentation of the rows, while the first weights are the network's
    own. `progress` is told the number of each epoch done and its mean loss. Elsewhere than on the
    CPU all rows are held on the device, and products are computed in bfloat16.
    """
    place = torch.device(device)
    draws = torch.Generator(place).manual_seed(seed)
    images, labels = (
        torch.from_numpy(rows).to(place) for rows in (examples.images, examples.labels)
    )
    network.to(place).train()
    # torch's stubs do not know the memory format that Module.to accepts
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    descent, rate = _descent(network, schedule, rows=len(examples))
    for epoch in range(1, schedule.epochs + 1):
        losses: list[torch.Tensor] = []
        order = torch.randperm(len(examples), generator=draws, device=place)
        for chosen in torch.split(order, schedule.batch_size):
            batch = augmented(images[chosen], schedule, draws)
            with torch.autocast(place.type, torch.bfloat16, enabled=place.type != "cpu"):
                logits = network(batch.contiguous(memory_format=torch.channels_last))
                loss = functional.cross_entropy(logits, labels[chosen])
            descent.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            descent.step()
            rate.step()
            losses.append(loss.detach())  # reading it here would have the device wait
        if progress is not None:
            progress(epoch, float(torch.stack(losses).mean()))
    network.eval()


def _descent(
    network: nn.Module, schedule: Schedule, *, rows: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    descent = torch.optim.SGD(
        network.parameters(),
        lr=schedule.peak_rate,
        momentum=0.9,
        weight_decay=schedule.weight_decay,
        nesterov=True,
    )
    steps = -(-rows // schedule.batch_size)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        descent, schedule.peak_rate, epochs=schedule.epochs, steps_per_epoch=steps
    )
    return descent, rate


def augmented(images: torch.Tensor, schedule: Schedule, draws: torch.Generator) -> torch.Tensor:
    """Shift each image by its own offset, zeros moving in, and mirror half of them if asked to."""
    rows, channels, height, width = images.shape
    place = images.device
    if schedule.shift:
        span = 2 * schedule.shift + 1
        offsets = torch.randint(0, span, (2, rows, 1), generator=draws, device=place)
        down = (offsets[0] + torch.arange(height, device=place))[:, None, :, None]
        right = (offsets[1] + torch.arange(width, device=place))[:, None, None, :]
        row = torch.arange(rows, device=place)[:, None, None, None]
        channel = torch.arange(channels, device=place)[None, :, None, None]
        images = functional.pad(images, [schedule.shift] * 4)[row, channel, down, right]
    if schedule.mirror:
        mirrored = torch.rand((rows, 1, 1, 1), generator=draws, device=place) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    return images


def torch_logits(
    network: nn.Module, examples: Examples, *, batch_size: int = 256, device: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Run the network, in evaluation mode, over all examples."""
    network.to(device).eval()
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(examples.images), batch_size)
        logits = torch.cat([network(batch.to(device)).cpu() for batch in batches])
    return np.asarray(logits.numpy(), np.float32)


def top1(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Give the share of rows whose largest logit is the right class."""
    return float(np.mean(logits.argmax(axis=1) == labels))


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("digits", (1, 32, 32), 10, Schedule(epochs=15, batch_size=64, shift=4)),
        Task("mnist", (1, 28, 28), 10, Schedule(epochs=15, peak_rate=0.05)),
        Task("cifar10", (3, 32, 32), 10, Schedule(epochs=160, shift=4, mirror=True)),
    )
}
