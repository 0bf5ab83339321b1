"""How good a model is: named metrics, and what a drop in each of them is.

A metric looks at labels (`top1`, `top5`), at the original's outputs (`agreement`, `mse`, `sqnr`),
or is a function of the user's. Models are plain callables from named inputs to outputs in order,
so nothing here runs one itself; outputs are taken batch by batch and not kept.
"""

from __future__ import annotations

from graphopt.metrics.meters import Outputs, class_scores
from graphopt.metrics.metric import Metric, Predict, Reference
from graphopt.metrics.table import METRICS, choose, named

__all__ = [
    "METRICS",
    "Metric",
    "Outputs",
    "Predict",
    "Reference",
    "choose",
    "class_scores",
    "named",
]
