"""A pass that takes as long as a test wants it to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from graphopt.ir import Graph
from graphopt.passbase import Context, Pass, Promise


@dataclass(frozen=True)
class WaitFor(Pass):
    """Wait until a file exists; change nothing."""

    name: ClassVar[str] = "wait-for"
    promise: ClassVar[Promise] = Promise.LOSSY

    file: str

    def run(self, graph: Graph, context: Context) -> None:
        while not Path(self.file).exists():
            time.sleep(0.05)
