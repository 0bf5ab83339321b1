"""Quantization: grids of integers for weights and activations."""

from __future__ import annotations

from graphopt.quantize.grid import (
    BIAS,
    INT4,
    INT8,
    INT8_FULL,
    UINT4,
    UINT8,
    Format,
    Grid,
    asymmetric,
    largest,
    symmetric,
)

__all__ = [
    "BIAS",
    "INT4",
    "INT8",
    "INT8_FULL",
    "UINT4",
    "UINT8",
    "Format",
    "Grid",
    "asymmetric",
    "largest",
    "symmetric",
]
