"""Train a graph with labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.train.engine import fit
from graphopt.train.history import History
from graphopt.train.hooks import Hook
from graphopt.train.objectives import CrossEntropy, Objective, OfUser
from graphopt.train.plan import Plan, Resources
from graphopt.train.viewing import adopt_weights, before_softmax, is_scores, sample_outputs

__all__ = ["finetune", "gives_scores"]


def finetune(
    graph: Graph,
    dataset: Dataset,
    objective: Objective,
    plan: Plan,
    *,
    resources: Resources | None = None,
    hooks: Sequence[Hook] = (),
) -> History:
    """Train a graph in place with the labels of its data; see `fit` for what is raised.

    A softmax at the graph's end is left out while it is trained, except for a function of the
    user's, which sees what the graph gives. Raises DataError, naming the row, for a label that
    is none of the network's classes, and for cross-entropy of a network without scores of classes.
    """
    labels = dataset.labels
    if labels is None:
        raise DataError(
            f"finetune: {dataset.spec} has no labels; give class folders or an array `labels`, or "
            f"use distill, which needs none"
        )
    if isinstance(objective, OfUser):
        return fit(graph, dataset, objective, plan, resources=resources, hooks=hooks)
    view = graph.with_outputs([before_softmax(graph, graph.outputs[0])])
    first = sample_outputs(view, dataset, 1)[0]
    classes = first[0].numel() if first.dim() else 0
    if classes > 1 and (is_scores(first) or not isinstance(objective, CrossEntropy)):
        _check_labels(labels, classes, dataset.spec)
    elif isinstance(objective, CrossEntropy):
        raise DataError(
            f"finetune: cross-entropy takes scores of classes, (rows, classes), and output "
            f"{graph.outputs[0]!r} is {tuple(first.shape)} of {str(first.dtype)[6:]}; name "
            f"loss=mse or a loss of your own, or use distill, which needs no labels"
        )
    history = fit(view, dataset, objective, plan, resources=resources, hooks=hooks)
    adopt_weights(graph, view, history.changed)
    return history


def gives_scores(graph: Graph, dataset: Dataset) -> bool:
    """Whether the first output looks like scores of classes, so that labels can be learned."""
    view = graph.with_outputs([before_softmax(graph, graph.outputs[0])])
    return is_scores(sample_outputs(view, dataset, 1)[0])


def _check_labels(labels: np.ndarray, classes: int, spec: str) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"finetune: labels must be 0 to {classes - 1}, the model has {classes} classes; row "
            f"{wrong[0]} of {spec} has {labels[wrong[0]]} ({len(wrong)} such rows); renumber them"
        )
