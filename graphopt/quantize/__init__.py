"""Quantization: grids of integers for weights and activations."""

from __future__ import annotations

from graphopt.quantize.grid import (
    INT4,
    INT8,
    INT8_FULL,
    INT32,
    UINT4,
    UINT8,
    Format,
    Grid,
    asymmetric,
    largest,
    symmetric,
)

__all__ = [
    "INT4",
    "INT8",
    "INT8_FULL",
    "INT32",
    "UINT4",
    "UINT8",
    "Format",
    "Grid",
    "asymmetric",
    "largest",
    "symmetric",
]
