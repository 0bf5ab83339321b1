"""The packed file: a model in as few bytes as its weights need, restored byte for byte."""

from __future__ import annotations

from graphopt.packed.packing import Packing, pack
from graphopt.packed.unpacking import is_packed, restored, unpack

__all__ = ["Packing", "is_packed", "pack", "restored", "unpack"]
