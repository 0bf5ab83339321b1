"""What a training did, for reports and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["History", "Point"]


@dataclass(frozen=True)
class Point:
    """A look at a training: mean loss since the look before, and loss on the held-out rows."""

    step: int
    done: float
    loss: float | None
    held_out: float | None


@dataclass
class History:
    """Steps and seconds spent, how fast, and which weights were kept."""

    steps: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    batch: int = 0
    processes: int = 1
    device: str = "cpu"
    format: str = ""
    """Precision and memory layout that were used."""
    timed: dict[str, float] = field(default_factory=dict)
    """Seconds per step of each format that was tried before choosing."""
    curve: list[Point] = field(default_factory=list)
    kept_step: int | None = None
    """After which step the kept weights were; None: the last."""
    resumed_step: int = 0
    """The step of the checkpoint that the training went on from."""
    changed: tuple[str, ...] = ()
    """The initializers that got new values."""
    stopped: str | None = None
    """Why the training ended before its time, if it did."""

    def as_notes(self) -> dict[str, str | int | float | None]:
        """The figures that a report shows."""
        held = [point.held_out for point in self.curve if point.held_out is not None]
        losses = [point.loss for point in self.curve if point.loss is not None]
        return {
            "steps": self.steps,
            "epochs": round(self.epochs, 3),
            "seconds": round(self.seconds, 1),
            "batch": self.batch,
            "processes": self.processes,
            "device": self.device,
            "format": self.format,
            "loss": losses[-1] if losses else None,
            "held_out_before": held[0] if held else None,
            "held_out_after": min(held) if held else None,
            "kept_step": self.kept_step,
            "resumed_step": self.resumed_step,
            "stopped": self.stopped,
            "remark": self._remark(losses, held),
        }

    def _remark(self, losses: Sequence[float], held: Sequence[float]) -> str:
        """The figures that people look at first, in words."""
        epochs, steps = ("" if count == 1 else "s" for count in (self.epochs, self.steps))
        told = [f"{self.epochs:.3g} epoch{epochs}, {self.steps:,} step{steps} of {self.batch} rows"]
        if self.resumed_step:
            told.append(f"gone on from step {self.resumed_step:,}")
        if held and self.kept_step == 0:
            told.append(f"no weights did better on held-out rows than the first, {held[0]:.3g}")
        elif held:
            told.append(f"loss on held-out rows {held[0]:.3g} -> {min(held):.3g}")
        elif losses:
            told.append(f"loss {losses[-1]:.3g}")
        return "; ".join(told)
