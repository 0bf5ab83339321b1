"""Digests of a model: which structure it has and which arrays it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx

from graphopt.ir.reading import Array

__all__ = ["digest"]


def digest(model: onnx.ModelProto, arrays: Mapping[str, Array], *, by_content: bool) -> str:
    """A hash of a skeleton and of its large arrays: of their bytes, or of which ones they are."""
    found = hashlib.sha256(model.SerializeToString(deterministic=True))
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(_content(arrays[name]) if by_content else _identity(arrays[name]))
    return found.hexdigest()


def _identity(array: Array) -> bytes:
    """Which array it is: enough within one process, for arrays are never written in place."""
    return f"{id(array)}{array.shape}".encode()


def _content(array: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()
