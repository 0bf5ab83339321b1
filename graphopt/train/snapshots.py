"""Weights put aside: the best so far, their moving average, and checkpoints on disk."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import FunctionType

import torch
from torch import nn

from graphopt.data import Dataset
from graphopt.errors import TargetError
from graphopt.files import atomic_file
from graphopt.ir import Graph
from graphopt.train.plan import Plan

__all__ = ["Best", "Checkpoint", "Saved", "State", "copied", "identity"]

State = dict[str, torch.Tensor]


def copied(module: nn.Module) -> State:
    """A copy of a module's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@dataclass
class Best:
    """The weights with the least loss on the held-out rows."""

    state: State
    loss: float = math.inf
    step: int = 0

    def offer(self, module: nn.Module, loss: float, step: int) -> None:
        """Keep these weights if they do better."""
        if loss < self.loss:
            self.state, self.loss, self.step = copied(module), loss, step


@dataclass(frozen=True)
class Saved:
    """A training between two steps; all else follows from the plan and the step."""

    step: int
    elapsed: float
    start: float
    layout: tuple[bool, bool]
    module: State
    optimizer: dict[str, object]
    best: tuple[State, float, int]
    curve: list[tuple[int, float, float | None, float | None]]
    losses: list[float]
    hooks: list[State]


class Checkpoint:
    """A file for one training, recognised by what is trained on what and how."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / f"{key}.pt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(f"checkpoints {folder}: cannot be made ({error.strerror})") from error

    def load(self) -> Saved | None:
        """What was saved last; None if there is nothing, or nothing whole."""
        try:
            found = torch.load(self._path, map_location="cpu", weights_only=True)
            return Saved(**found)
        except (OSError, RuntimeError, TypeError, EOFError, pickle.UnpicklingError):
            return None

    def save(self, saved: Saved) -> None:
        """Replace the file; it is whole at any time."""
        buffer = io.BytesIO()
        torch.save(vars(saved), buffer)
        with atomic_file(self._path) as file:
            file.write(buffer.getbuffer())

    def remove(self) -> None:
        """The training is over."""
        self._path.unlink(missing_ok=True)


def identity(
    graph: Graph, teacher: Graph | None, dataset: Dataset, plan: Plan, parts: Sequence[object]
) -> str:
    """What tells one training from another; how often it is saved does not."""
    settings = {f.name: vars(plan)[f.name] for f in fields(plan) if f.name != "save_seconds"}
    facts = [graph.content_hash(), teacher.content_hash() if teacher else "", repr(settings)]
    facts += [dataset.fingerprint(), *map(_told, parts)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:32]


def _told(part: object) -> str:
    """A text for a seed, an objective or a hook that is the same in every process."""
    if is_dataclass(part) or isinstance(part, int):
        return repr(part)
    named = part if isinstance(part, FunctionType) else type(part)
    return f"{named.__module__}.{named.__qualname__}"
