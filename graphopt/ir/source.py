"""The file that a graph was loaded from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graphopt.files import is_one_of

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """The file a graph was loaded from, as it was before anything was normalised.

    `nodes` counts those of every body, but no Constant; `size_bytes` includes the data that lie in
    the files `external`.
    """

    path: Path | None
    nodes: int
    size_bytes: int
    external: tuple[Path, ...] = ()

    def kept(self, target: Path) -> tuple[Path, ...]:
        """The external files, which saving must not replace; none where the model itself goes."""
        same = self.path is not None and is_one_of(target, (self.path,))
        return () if same else self.external
