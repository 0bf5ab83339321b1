"""The table of lowerings: one row per operator, from the families' own tables."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.lens import (
    arithmetic,
    attention,
    casts,
    control,
    convolution,
    filling,
    indexing,
    layout,
    linear,
    losses,
    norms,
    padding,
    pointwise,
    pooling,
    quantized,
    recurrent,
    reductions,
    resizing,
    sequences,
    signals,
    vision,
)
from graphopt.lens.site import Row

__all__ = ["LOWERINGS"]

_FAMILIES = (
    arithmetic,
    attention,
    casts,
    control,
    convolution,
    filling,
    indexing,
    layout,
    linear,
    losses,
    norms,
    padding,
    pointwise,
    pooling,
    quantized,
    recurrent,
    reductions,
    resizing,
    sequences,
    signals,
    vision,
)

LOWERINGS: Mapping[str, Row] = {
    op: row for family in _FAMILIES for op, row in sorted(family.ROWS.items())
}
"""How each operator of the standard domain is written in torch."""
