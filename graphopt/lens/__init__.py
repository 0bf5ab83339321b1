"""The trainable view: any graph as a torch.fx module whose weights can be written back."""

from __future__ import annotations

from graphopt.lens.lowering import LoweredModule, lower
from graphopt.lens.table import LOWERINGS
from graphopt.lens.threads import limited_threads
from graphopt.lens.view import trainable, write_back

__all__ = ["LOWERINGS", "LoweredModule", "limited_threads", "lower", "trainable", "write_back"]
