"""How to train, as plain data that is checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graphopt.errors import RecipeError

__all__ = [
    "AUGMENTATIONS",
    "LOSSES",
    "Guided",
    "Lesson",
    "Plan",
    "Progress",
    "Resources",
    "rate_factor",
]

Progress = Callable[[str, float], None]

AUGMENTATIONS = ("flip", "crop", "cutout", "mixup")
"""Mirror left to right; shift; blank a quarter by a quarter; blend two."""

LOSSES = ("cross-entropy", "mse")
"""Losses that have a name; all others are functions of the user's."""

EPOCHS = 10.0
"""When neither epochs nor minutes are asked for."""


@dataclass(frozen=True)
class Plan:
    """How long to train, and how.

    Training ends after `epochs` or `minutes`, whichever is first; without both it is 10 epochs.
    The `schedule` is laid over what will be done in that time, so that the `rate` really reaches
    its end. `batch` is per process, and no more than the rows there are: a network with a fixed
    batch is opened to others if two batches at once then give what they give apart. `warmup` is a
    part of the training, `clip` the largest norm of the gradient (0: any).
    `weight_decay` leaves out norms, biases and all else of one axis. Images are varied as `augment`
    says, some of flip, crop, cutout and mixup; auto shifts them and, where a teacher answers for
    both, mirrors them. Shifts are of `shift` pixels at most, or of an eighth of the size. Images
    are varied anew each time, or each in so many `variants` that are drawn once: a teacher's
    answers to these are computed once, too. On a CPU `precision` and `layout` in memory are timed,
    and the fastest taken, unless they are given; a GPU takes bf16, if it has it, and channels last.

    A part `holdout` of the rows, at most 1,024, is not trained on: the weights that do best on it
    are kept. If that were fewer than 16 rows none are held out, and the last weights are kept.
    With a work directory a checkpoint is written every `save_seconds`, from which a training that
    was killed goes on.
    """

    epochs: float | None = None
    minutes: float | None = None
    batch: int = 128
    rate: float = 0.02
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 0.02
    weight_decay: float = 5e-4
    clip: float = 1.0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    layout: Literal["auto", "contiguous", "channels-last"] = "auto"
    augment: tuple[str, ...] = ("auto",)
    shift: int | None = None
    variants: int = 0
    holdout: float = 0.05
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        _check(
            {
                "epochs": (self.epochs is None or 0 < self.epochs < math.inf, "above 0"),
                "minutes": (self.minutes is None or 0 < self.minutes < math.inf, "above 0"),
                "batch": (self.batch >= 1, "at least 1"),
                "rate": (0 < self.rate < math.inf, "above 0"),
                "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
                "warmup": (0 <= self.warmup < 1, "at least 0 and below 1"),
                "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
                "clip": (0 <= self.clip < math.inf, "at least 0"),
                "variants": (
                    self.variants >= 0 and not (self.variants and "mixup" in self.augment),
                    "at least 0, and 0 with mixup",
                ),
                "shift": (
                    self.shift is None
                    or (self.shift >= 1 and not {"auto", "crop"}.isdisjoint(self.augment)),
                    "at least 1, and goes with augment=[crop]",
                ),
                "holdout": (0 <= self.holdout < 1, "at least 0 and below 1"),
                "save_seconds": (self.save_seconds >= 0, "at least 0"),
                "augment": (
                    self.augment == ("auto",) or set(self.augment) <= set(AUGMENTATIONS),
                    f"[auto] or some of [{', '.join(AUGMENTATIONS)}]",
                ),
            },
            self,
        )

    @property
    def most_epochs(self) -> float:
        """The bound on epochs; infinite where only the time counts."""
        if self.epochs is not None:
            return self.epochs
        return EPOCHS if self.minutes is None else math.inf


@dataclass(frozen=True)
class Lesson:
    """What the original, or another teacher, teaches.

    Class scores (rows, classes) are compared by the divergence of their softmax at `temperature`,
    times its square, or by their squared error (`loss` mse); all other outputs by squared error
    over the teacher's variance. `hints` and `attention` weigh tensors inside that both networks
    have under one name: their squared error over the teacher's variance, and the distance of
    their normalised maps of energy over places (Zagoruyko & Komodakis 2017).
    """

    temperature: float = 4.0
    loss: Literal["auto", "kl", "mse"] = "auto"
    hints: float = 0.0
    attention: float = 0.0

    def __post_init__(self) -> None:
        _check(
            {
                "temperature": (0 < self.temperature < math.inf, "above 0"),
                "hints": (0 <= self.hints < math.inf, "at least 0"),
                "attention": (0 <= self.attention < math.inf, "at least 0"),
            },
            self,
        )


_LEARN = ("auto", "labels", "original")


@dataclass(frozen=True)
class Guided(Plan):
    """What a training goes by.

    `learn` labels (cross-entropy), or to do what the original does (as `distill` with its
    defaults); auto takes labels where the data have any and the first output is scores of classes.
    """

    learn: Literal["auto", "labels", "original"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn not in _LEARN:
            raise RecipeError(f"train: learn is one of {', '.join(_LEARN)}, got {self.learn!r}")


def _silent(stage: str, fraction: float) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Resources:
    """Where to train: auto, cpu or cuda; with how many threads (0: all cores); the seed.

    In the folder `checkpoints` an interrupted training leaves what it needs to go on.
    """

    device: str = "auto"
    threads: int = 0
    seed: int = 0
    checkpoints: Path | None = None
    progress: Progress = _silent

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise RecipeError(f"train: device must be auto, cpu or cuda, got {self.device!r}")


def _check(rules: Mapping[str, tuple[bool, str]], owner: Plan | Lesson) -> None:
    for name, (holds, rule) in rules.items():
        if not holds:
            raise RecipeError(f"train: {name} must be {rule}, got {vars(owner)[name]!r}")


def rate_factor(plan: Plan, done: float) -> float:
    """The learning rate over the plan's rate, when a part `done` of the training is over.

    A linear warm-up; then half a cosine to 0, or a tenth after one half and again after three
    quarters of the training, or no change.
    """
    if done < plan.warmup:
        return done / plan.warmup
    if plan.schedule == "cosine":
        rest = (done - plan.warmup) / (1 - plan.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))
    if plan.schedule == "step":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    return 1.0
