"""Train a graph with labels where there are any, else to do what a teacher does."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.train.distilling import distill
from graphopt.train.finetuning import finetune, gives_scores
from graphopt.train.history import History
from graphopt.train.hooks import Hook
from graphopt.train.objectives import CrossEntropy
from graphopt.train.plan import Guided, Resources

__all__ = ["recover"]


def recover(
    graph: Graph,
    teacher: Graph,
    dataset: Dataset,
    plan: Guided,
    *,
    resources: Resources | None = None,
    hooks: Sequence[Hook] = (),
) -> History:
    """Train in place by cross-entropy with labels or by distillation; see `Guided` and `fit`."""
    learn = plan.learn
    if learn == "auto" and dataset.labels is not None and gives_scores(graph, dataset):
        learn = "labels"
    if learn == "labels":
        return finetune(graph, dataset, CrossEntropy(), plan, resources=resources, hooks=hooks)
    return distill(graph, teacher, dataset, plan, resources=resources, hooks=hooks)
