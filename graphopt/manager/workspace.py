"""The work directory: accepted stages under a content hash, so that a killed run resumes.

`stages/<hash>.onnx` is a graph, `stages/<hash>.json` the records of the passes that made it. The
hash covers the graph before, the passes with their options, the data and the seed; changing one
option repeats only what follows it. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from graphopt.errors import ModelError, TargetError
from graphopt.files import atomic_file
from graphopt.ir import Graph
from graphopt.manager.record import PassRecord, Size
from graphopt.notation import spec
from graphopt.recipe import Stage

__all__ = ["Workspace", "stage_key"]


def stage_key(before: Graph, stages: Sequence[Stage], *facts: str) -> str:
    """The identity of a piece of work: what goes in and what is done to it."""
    digest = hashlib.sha256(before.content_hash().encode())
    for stage in stages:
        digest.update(f"{stage.rounds}:{','.join(map(spec, stage.passes))};".encode())
    for fact in facts:
        digest.update(fact.encode() + b"\0")
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Workspace:
    """A directory for finished stages and for reproducers of failures."""

    folder: Path
    resumes: bool = False
    """Whether runs go on from what is in the directory."""

    @property
    def checkpoints(self) -> Path | None:
        """Where trainings and calibrations keep how far they have come."""
        return self.folder / "checkpoints" if self.resumes else None

    def prepare(self) -> None:
        """Make the directory. Raises TargetError if that is not possible."""
        try:
            (self.folder / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(
                f"work directory {self.folder}: cannot be made ({error.strerror})"
            ) from error

    def load(self, key: str) -> tuple[Graph, tuple[PassRecord, ...]] | None:
        """A finished stage, or None; a damaged one counts as absent."""
        record = self.folder / "stages" / f"{key}.json"
        try:
            document = json.loads(record.read_text())
            graph = Graph.load(self.folder / "stages" / f"{key}.onnx")
            return graph, tuple(_record(entry) for entry in document)
        except (OSError, ValueError, KeyError, TypeError, ModelError):
            return None

    def save(self, key: str, graph: Graph, records: Sequence[PassRecord]) -> None:
        """Keep a finished stage; the record is written last and makes it count."""
        graph.save(self.folder / "stages" / f"{key}.onnx")
        text = json.dumps([asdict(record) for record in records])
        with atomic_file(self.folder / "stages" / f"{key}.json") as file:
            file.write(text.encode())

    def reproducer(self, before: Graph, passes: str, seed: int) -> Path:
        """Save the graph a pass failed on, with the command that replays the failure."""
        digest = hashlib.sha256(f"{before.content_hash()}{passes}".encode()).hexdigest()[:12]
        folder = self.folder / f"failure-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        before.save(folder / "before.onnx")
        model = shlex.quote(str(folder / "before.onnx"))
        command = f"graphopt optimize {model} --passes {shlex.quote(passes)} --seed {seed}\n"
        (folder / "reproduce.sh").write_text(command)
        return folder


def _record(entry: dict[str, object]) -> PassRecord:
    sizes = {key: Size(**entry.pop(key)) for key in ("before", "after")}  # type: ignore[arg-type]
    return PassRecord(**{**entry, **sizes, "cached": True})  # type: ignore[arg-type]
