"""What calibration has gathered so far, in a file from which it can go on."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt.errors import TargetError
from graphopt.files import atomic_file
from graphopt.quantize.observed import BINS, Observed

__all__ = ["Gathered", "Kept"]


@dataclass(frozen=True)
class Gathered:
    """Calibration between two batches.

    rows      how many inputs were looked at, in `seconds`
    look      after how many ranges are looked at next
    tails     the outer quantiles of each tensor when they were looked at last
    stopped   why no more inputs are looked at
    """

    seen: Mapping[str, Observed]
    look: int
    rows: int = 0
    seconds: float = 0.0
    tails: Mapping[str, tuple[float, float]] | None = None
    stopped: str | None = None


class Kept:
    """A file for one calibration, recognised by what is observed on which inputs and how."""

    def __init__(self, folder: Path, facts: Sequence[str]) -> None:
        key = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:32]
        self._path = folder / f"{key}.npz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(f"checkpoints {folder}: cannot be made ({error.strerror})") from error

    def load(self, names: Sequence[str]) -> Gathered | None:
        """What was saved last of these tensors; None if there is nothing, or nothing whole."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                return _unpacked(names, found)
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, gathered: Gathered) -> None:
        """Replace the file, which is whole at any time: a row for each tensor, and a few facts."""
        entries, tails = list(gathered.seen.values()), gathered.tails
        facts = [(e.exponent, e.low, e.high, *e.faded, e.inputs) for e in entries]
        with atomic_file(self._path) as file:
            np.savez(
                file,
                counts=np.array([entry.counts for entry in entries]),
                facts=np.array(facts, np.float64),
                tails=np.array([] if tails is None else [tails[name] for name in gathered.seen]),
                whole=np.array([gathered.look, gathered.rows, gathered.seconds], np.float64),
                stopped=np.array(gathered.stopped or ""),
            )


def _unpacked(names: Sequence[str], found: Mapping[str, np.ndarray]) -> Gathered:
    """Raises KeyError or ValueError for arrays that are others."""
    counts, tails = found["counts"], found["tails"]
    if counts.shape != (len(names), BINS):
        raise ValueError(f"{counts.shape} are not the bins of {len(names)} tensors")
    seen = {
        name: Observed(row, int(exponent), low, high, (least, largest), int(inputs))
        for name, row, (exponent, low, high, least, largest, inputs) in zip(
            names, counts, found["facts"].tolist(), strict=True
        )
    }
    look, rows, seconds = found["whole"].tolist()
    return Gathered(
        seen,
        int(look),
        int(rows),
        seconds,
        dict(zip(names, map(tuple, tails.tolist()), strict=True)) if len(tails) else None,
        str(found["stopped"]) or None,
    )
