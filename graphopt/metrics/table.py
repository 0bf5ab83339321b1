"""The named metrics, and which of them is used where the user names none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from graphopt.data import load_function
from graphopt.data.userfile import is_function_name
from graphopt.data.wording import did_you_mean
from graphopt.errors import DataError, RecipeError
from graphopt.metrics.meters import (
    Agreement,
    ErrorPower,
    OfUser,
    Outputs,
    TopK,
    class_scores,
    require_scores,
)
from graphopt.metrics.metric import Metric

__all__ = ["METRICS", "choose", "named"]


def _decibels(ratio: float) -> float:
    if ratio == 0:
        return math.inf
    return -10 * math.log10(ratio)


def _power_of(decibels: float) -> float:
    return 10 ** (-decibels / 10)


def _negative(value: float) -> float:
    return -value


def _itself(value: float) -> float:
    return value


_ROWS = (
    Metric(
        "top1", "share of rows whose best class is the label; drop: its fall",
        higher_is_better=True, needs_labels=True, relative=False,
        meter=lambda: TopK(1), loss=_negative,
    ),
    Metric(
        "top5", "share of rows whose label is among the five best classes; drop: its fall",
        higher_is_better=True, needs_labels=True, relative=False,
        meter=lambda: TopK(5), loss=_negative,
    ),
    Metric(
        "agreement", "share of rows whose best class is the original's; drop: its fall from 1",
        higher_is_better=True, needs_labels=False, relative=True,
        meter=Agreement, loss=_negative, ideal=1.0,
    ),
    Metric(
        "mse", "mean squared error over the mean square of the original's outputs; drop: its rise",
        higher_is_better=False, needs_labels=False, relative=True,
        meter=lambda: ErrorPower("mse", _itself), loss=_itself, ideal=0.0,
    ),
    Metric(
        "sqnr", "signal over error in decibels; drop: error power over signal, 0.01 is 20 dB",
        higher_is_better=True, needs_labels=False, relative=True,
        meter=lambda: ErrorPower("sqnr", _decibels), loss=_power_of, ideal=math.inf,
    ),
)  # fmt: skip

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ROWS})


def choose(name: str | None, *, has_labels: bool, outputs: Outputs) -> Metric:
    """The metric of that name; without one, what labels and the original's outputs allow.

    `outputs` are what the original gave for a batch. With class scores (rows, classes) first
    among them the metric is top1 where there are labels, else agreement; sqnr for all else.
    """
    scored = bool(outputs) and class_scores(outputs[0]) is not None
    if name is None:
        classes = "top1" if has_labels else "agreement"
        return METRICS[classes if scored else "sqnr"]
    metric = named(name)
    if metric.needs_labels and not has_labels:
        raise DataError(f"metric {name}: the data has no labels; give some, or use agreement")
    if name in ("top1", "top5", "agreement"):
        require_scores(name, outputs)
    return metric


def named(name: str) -> Metric:
    """The metric of that name, or a function of the user's, named as file.py:function.

    Raises RecipeError for another name, DataError if there is no such file or function.
    """
    if is_function_name(name):
        return _of_user(name)
    if name not in METRICS:
        raise RecipeError(
            f"metric: {name!r} is neither {', '.join(METRICS)} nor file.py:function"
            f"{did_you_mean(name, METRICS)}"
        )
    return METRICS[name]


def _of_user(text: str) -> Metric:
    function = load_function(text, "metric")
    return Metric(
        text, "higher is better; drop: its fall",
        higher_is_better=True, needs_labels=False, relative=False,
        meter=lambda: OfUser(text, function), loss=_negative,
    )  # fmt: skip
