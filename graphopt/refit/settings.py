"""How layers are fitted: the options that passes share, and what a run adds to them."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.errors import RecipeError

__all__ = ["Fitting", "Settings"]


@dataclass(frozen=True)
class Fitting:
    """Options of passes that fit layers, checked.

    `samples` inputs are fitted on, with a ridge of `damping` times the mean square input. `rounds`
    refine layers that a ReLU or clamp reads (0: none); `joint` rounds refine layers together with
    the ones before them, in place of `rounds`.
    """

    samples: int = 1024
    rounds: int = 6
    damping: float = 1e-4
    joint: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RecipeError(f"refit: samples must be at least 1, got {self.samples}")
        for key, number in (("rounds", self.rounds), ("joint", self.joint)):
            if number < 0:
                raise RecipeError(f"refit: {key} must not be negative, got {number}")
        if not self.damping > 0:
            raise RecipeError(f"refit: damping must be above 0, got {self.damping}")

    def settings(self, *, seed: int, threads: int) -> Settings:
        """The options for one run."""
        return Settings(
            damping=self.damping, rounds=self.rounds, joint=self.joint, seed=seed, threads=threads
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How layers are fitted in one run; the options are those of `Fitting`."""

    damping: float = 1e-4
    rounds: int = 6
    joint: int = 0
    seed: int = 0
    threads: int = 1
