"""Count what a model costs."""

from __future__ import annotations

from graphopt.cost.counting import Cost, cost, node_macs
from graphopt.cost.dims import OpenDim, Role, bind, dim_key, open_dims
from graphopt.cost.macs import operator

__all__ = [
    "Cost",
    "OpenDim",
    "Role",
    "bind",
    "cost",
    "dim_key",
    "node_macs",
    "open_dims",
    "operator",
]
