"""The steps of one training, from its first or from a checkpoint to its last."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn, optim

from graphopt.lens import LoweredModule
from graphopt.train.batches import Batch, Feed, Outputs, Places
from graphopt.train.devices import equalise
from graphopt.train.formats import Format, as_outputs, widened
from graphopt.train.history import History, Point
from graphopt.train.hooks import Hook, Training
from graphopt.train.objectives import Objective
from graphopt.train.optimizing import set_rate
from graphopt.train.pace import Pace
from graphopt.train.plan import Plan, Resources
from graphopt.train.rows import free_bytes
from graphopt.train.snapshots import Best, Checkpoint, Saved, copied
from graphopt.train.teaching import Teacher

__all__ = ["Course", "Job", "Setup"]

_LOOKS = 10
"""How often the held-out rows are looked at, the start not counted."""
_SHARE = 0.1
"""The part of the free memory that held-out rows may take between looks."""
_STRIDE = 16
"""Steps between looks at the losses, where looking makes a device or other processes wait."""


@dataclass(frozen=True)
class Job:
    """What was asked for."""

    module: LoweredModule
    objective: Objective
    plan: Plan
    resources: Resources
    hooks: tuple[Hook, ...]
    checkpoint: Checkpoint | None


@dataclass(frozen=True)
class Setup:
    """What it takes."""

    fabric: Fabric
    layout: Format
    wrapped: nn.Module
    """The module as Fabric runs it."""
    optimizer: optim.Optimizer
    feed: Feed
    held: Places
    teacher: Teacher | None
    pace: Pace


class Course:
    """Runs the steps and keeps the best weights; the module has them when it is over."""

    def __init__(self, job: Job, setup: Setup, history: History) -> None:
        self._job, self._setup, self._history = job, setup, history
        self._pace = setup.pace
        self._training = Training(job.module)
        self._step = 0
        self._losses: list[torch.Tensor] = []
        self._mean: list[float] = []
        self._best = Best(copied(self._job.module))
        self._exam: list[Batch] | None = None
        self._saved = time.perf_counter()
        alone = setup.fabric.world_size == 1 and setup.fabric.device.type == "cpu"
        self._stride = 1 if alone else _STRIDE

    def run(self, saved: Saved | None) -> History:
        """Train from the start, or from a checkpoint, to the end."""
        setup, pace = self._setup, self._pace
        if saved is None:
            began = time.perf_counter()
            self._look(0.0)
            pace.first_step(reserve=time.perf_counter() - began)
        else:
            self._resume(saved)
        setup.wrapped.train()
        with closing(setup.feed.batches(self._step)) as batches:
            for batch in batches:
                done = pace.done(self._step)
                if done >= 1 or not self._advance(batch, done):
                    break
        if self._history.stopped is None and self._healthy() and self._sound():
            self._look(1.0)
        return self._finished()

    # ---- one step --------------------------------------------------------------------------

    def _advance(self, batch: Batch, done: float) -> bool:
        """Take a step and do what is due after it; False if the training must stop."""
        self._learn(batch, done)
        self._step += 1
        after = self._pace.done(self._step)
        if self._step % self._setup.feed.epoch_steps == 0:
            for hook in self._job.hooks:
                hook.after_epoch(self._training, after)
        if after < 1 and math.floor(after * _LOOKS) > math.floor(done * _LOOKS):
            if not self._healthy():
                return False
            self._look(after)
        if self._pace.wants_report():
            self._job.resources.progress(f"training, {self._pace.left(after)}", after)
        if self._step % self._stride == 0:
            if not self._healthy():
                return False
            self._save_if_due()
        return True

    def _learn(self, batch: Batch, done: float) -> None:
        setup, training = self._setup, self._training
        seed = _seed_of(self._job.resources.seed, self._step, setup.fabric.global_rank)
        # torch.manual_seed formats a stack for every kind of device that is not there.
        torch.default_generator.manual_seed(seed)
        if setup.fabric.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        set_rate(setup.optimizer, self._job.plan, done)
        for hook in self._job.hooks:
            hook.before_step(training, done)
        if setup.teacher is not None:
            batch = setup.teacher.teach(batch)
        setup.optimizer.zero_grad(set_to_none=True)
        loss = blended(self._job.objective, as_outputs(setup.wrapped(*batch.inputs)), batch)
        setup.fabric.backward(loss)
        for hook in self._job.hooks:
            hook.after_backward(training, done)
        if self._job.plan.clip:
            setup.fabric.clip_gradients(
                setup.wrapped,
                setup.optimizer,
                max_norm=self._job.plan.clip,
                error_if_nonfinite=False,
            )
        setup.optimizer.step()
        for hook in self._job.hooks:
            hook.after_step(training, done)
        self._losses.append(loss.detach())

    def _healthy(self) -> bool:
        """Read the losses since last time; if one is not finite, note the step and say no."""
        if not self._losses:
            return True
        found = torch.stack(self._losses)
        if self._setup.fabric.world_size > 1:
            found = self._setup.fabric.all_reduce(found, reduce_op="mean")
        values = found.tolist()
        first = self._step - len(values)
        self._losses.clear()
        for place, value in enumerate(values):
            if not math.isfinite(value):
                self._history.stopped = self._not_finite(value, first + place + 1)
                return False
        self._mean.extend(values)
        return True

    def _sound(self) -> bool:
        """Without held-out rows: note it and say no if the last step ruined the weights."""
        feed = self._setup.feed
        if len(self._setup.held):
            return True
        batch = next(feed.in_order(feed.trained[: feed.batch]))
        loss = self._mean_loss([self._setup.teacher.teach(batch) if self._setup.teacher else batch])
        if not math.isfinite(loss):
            self._history.stopped = self._not_finite(loss, self._step + 1)
        return self._history.stopped is None

    def _not_finite(self, value: float, step: int) -> str:
        """What happened, and what to do: before the first step nothing has been learned."""
        advice = "lower the learning rate"
        if step == 1:
            advice = "look for what is not finite in the weights and in the data"
        return (
            f"the loss was {value} at step {step}; the weights of step {self._best.step} are "
            f"kept; {advice}"
        )

    # ---- the held-out rows -----------------------------------------------------------------

    def _examination(self) -> Iterator[Batch]:
        """This process's part of the held-out rows, with what the teacher says of them.

        They are kept for the next time if they take little of the memory.
        """
        if self._exam is not None:
            yield from self._exam
            return
        setup, kept, size = self._setup, list[Batch](), 0
        room = _SHARE * free_bytes(setup.fabric.device)
        parts = range(0, len(setup.held), setup.feed.batch)
        for start in parts[setup.fabric.global_rank :: setup.fabric.world_size]:
            for batch in setup.feed.in_order(setup.held[start : start + setup.feed.batch]):
                batch = setup.teacher.teach(batch) if setup.teacher else batch
                size += sum(tensor.nbytes for tensor in (*batch.inputs, *batch.taught))
                if size <= room:
                    kept.append(batch)
                yield batch
        self._exam = kept if size <= room else None

    def _look(self, done: float) -> None:
        """Note the losses; keep the weights if they are the best so far."""
        loss = sum(self._mean) / len(self._mean) if self._mean else None
        self._mean = []
        held = self._mean_loss(self._examination()) if len(self._setup.held) else None
        self._history.curve.append(Point(self._step, done, loss, held))
        if held is not None:
            self._best.offer(self._job.module, held, self._step)

    def _mean_loss(self, batches: Iterable[Batch]) -> float:
        """The mean of the objective over the rows of every process's batches, in eval() mode."""
        setup = self._setup
        self._job.module.eval()
        total = torch.zeros(2, device=setup.fabric.device, dtype=torch.float64)
        with torch.no_grad():
            for batch in batches:
                with setup.fabric.autocast():
                    outputs = as_outputs(self._job.module(*batch.inputs))
                count = len(batch.inputs[0])
                total[0] += count * self._job.objective(widened(outputs), batch)
                total[1] += count
        self._job.module.train()
        if setup.fabric.world_size > 1:
            total = setup.fabric.all_reduce(total, reduce_op="sum")
        return float(total[0] / total[1])

    # ---- beginning again, and the end ------------------------------------------------------

    def _save_if_due(self) -> None:
        """Write a checkpoint now and then; all losses so far have been read and are finite."""
        checkpoint, now = self._job.checkpoint, time.perf_counter()
        if checkpoint is None or now - self._saved < self._job.plan.save_seconds:
            return
        self._saved = now
        if self._setup.fabric.global_rank == 0:
            checkpoint.save(self._state())

    def _state(self) -> Saved:
        setup, best = self._setup, self._best
        return Saved(
            step=self._step,
            elapsed=self._pace.elapsed(),
            start=self._pace.start,
            layout=(setup.layout.bf16, setup.layout.channels_last),
            module=self._job.module.state_dict(),
            optimizer=setup.optimizer.state_dict(),
            best=(best.state, best.loss, best.step),
            curve=[(p.step, p.done, p.loss, p.held_out) for p in self._history.curve],
            losses=self._mean,
            hooks=[dict(hook.state()) for hook in self._job.hooks],
        )

    def _resume(self, saved: Saved) -> None:
        setup = self._setup
        self._step = self._history.resumed_step = saved.step
        self._pace.resume(saved.elapsed, saved.start)
        self._job.module.load_state_dict(saved.module)
        setup.optimizer.load_state_dict(saved.optimizer)
        self._best = Best(*saved.best)
        self._history.curve = [Point(*point) for point in saved.curve]
        self._mean = list(saved.losses)
        for hook, own in zip(self._job.hooks, saved.hooks, strict=True):
            hook.restore(own)

    def _finished(self) -> History:
        """Put the kept weights into the module, and note what was done."""
        setup, history = self._setup, self._history
        if history.stopped is not None or len(setup.held):
            self._job.module.load_state_dict(self._best.state)
            history.kept_step = self._best.step
        equalise(setup.fabric, self._job.module)
        for hook in self._job.hooks:
            hook.finish(self._training)
        history.steps = self._step
        history.epochs = self._step / setup.feed.epoch_steps
        history.seconds = self._pace.elapsed()
        history.processes = setup.fabric.world_size
        history.batch = setup.feed.batch * history.processes
        if self._job.checkpoint is not None and setup.fabric.global_rank == 0:
            self._job.checkpoint.remove()
        return history


def blended(objective: Objective, outputs: Outputs, batch: Batch) -> torch.Tensor:
    """The loss; of inputs blended from two, the blend of the losses with either label."""
    loss = objective(outputs, batch)
    if batch.partners is None:
        return loss
    other = objective(outputs, replace(batch, labels=batch.partners))
    return batch.share * loss + (1 - batch.share) * other


def _seed_of(seed: int, step: int, rank: int) -> int:
    """What dropout draws from, for each step and process."""
    return int(np.random.SeedSequence([seed, 3, step, rank]).generate_state(1)[0])
