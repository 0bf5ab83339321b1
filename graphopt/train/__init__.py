"""Train a graph: `fit` with an objective, `finetune` with labels, `distill` from a teacher.

    history = distill(graph, teacher, dataset, Plan(minutes=10), Lesson(temperature=4))

The graph is trained through its torch.fx view and gets its weights back only if all went well.
Names are imported when they are first used, so that a plan can be made and checked without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from graphopt.train.plan import AUGMENTATIONS, LOSSES, Guided, Lesson, Plan, Resources

if TYPE_CHECKING:
    from graphopt.train.batches import Batch, Outputs
    from graphopt.train.devices import find_device
    from graphopt.train.distilling import distill
    from graphopt.train.engine import fit
    from graphopt.train.finetuning import finetune
    from graphopt.train.history import History
    from graphopt.train.hooks import Hook, Training
    from graphopt.train.joint_rounding import JointTask, Unrounded, learn_joint_rounding
    from graphopt.train.learned_rounding import Descent, RoundingTask, learn_rounding
    from graphopt.train.objectives import CrossEntropy, Objective, SquaredError, objective_of
    from graphopt.train.pruning import Ramp, Surgery
    from graphopt.train.recovering import recover
    from graphopt.train.slimming import ScalePull, scales_of
    from graphopt.train.softening import SoftZeros, filters_of
    from graphopt.train.steps import StepSizes

__all__ = [
    "AUGMENTATIONS",
    "LOSSES",
    "Batch",
    "CrossEntropy",
    "Descent",
    "Guided",
    "History",
    "Hook",
    "JointTask",
    "Lesson",
    "Objective",
    "Outputs",
    "Plan",
    "Ramp",
    "Resources",
    "RoundingTask",
    "ScalePull",
    "SoftZeros",
    "SquaredError",
    "StepSizes",
    "Surgery",
    "Training",
    "Unrounded",
    "distill",
    "filters_of",
    "find_device",
    "finetune",
    "fit",
    "learn_joint_rounding",
    "learn_rounding",
    "objective_of",
    "recover",
    "scales_of",
]

_HOMES = {
    "Batch": "batches",
    "CrossEntropy": "objectives",
    "Descent": "learned_rounding",
    "History": "history",
    "Hook": "hooks",
    "JointTask": "joint_rounding",
    "Objective": "objectives",
    "Outputs": "batches",
    "Ramp": "pruning",
    "ScalePull": "slimming",
    "SoftZeros": "softening",
    "RoundingTask": "learned_rounding",
    "StepSizes": "steps",
    "SquaredError": "objectives",
    "Surgery": "pruning",
    "Training": "hooks",
    "Unrounded": "joint_rounding",
    "distill": "distilling",
    "filters_of": "softening",
    "find_device": "devices",
    "finetune": "finetuning",
    "fit": "engine",
    "learn_joint_rounding": "joint_rounding",
    "learn_rounding": "learned_rounding",
    "objective_of": "objectives",
    "recover": "recovering",
    "scales_of": "slimming",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"graphopt.train.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'graphopt.train' has no attribute {name!r}")
