"""Which rows are trained on, in what batches, and how numbers are computed with."""

from __future__ import annotations

import numpy as np
from lightning_fabric import Fabric
from torch import nn

from graphopt.data import Dataset
from graphopt.errors import DataError, ModelError
from graphopt.lens import LoweredModule
from graphopt.train.augmenting import channel_axis
from graphopt.train.batches import Batch, Places
from graphopt.train.formats import Format, arrange, run_once
from graphopt.train.history import History
from graphopt.train.objectives import Objective
from graphopt.train.plan import Plan
from graphopt.train.rows import Rows
from graphopt.train.snapshots import copied

__all__ = ["batch_size", "chosen_variants", "fastest_format", "part_rows", "synchronised"]

_MOST_HELD = 1024
_FEWEST_HELD = 16
_TIMED = 2
"""Steps that are timed for each format, after one that is not; the fastest counts."""


def part_rows(dataset: Dataset, plan: Plan, seed: int) -> tuple[Places, Places]:
    """Positions that are trained on, and held-out ones; of whole batches if these are fixed."""
    unit = dataset.fixed_batch or 1
    count = len(dataset) // unit * unit
    held = min(round(plan.holdout * count), _MOST_HELD) // unit * unit
    if held < _FEWEST_HELD or held == count:
        held = 0
    order = np.random.default_rng([seed, 0]).permutation(len(dataset))[:count]
    return np.sort(order[held:]), np.sort(order[:held])


def batch_size(dataset: Dataset, count: int, wanted: int, processes: int) -> int:
    """Rows of a batch of each process: what is asked for, or what `count` allows if that is less.

    Raises DataError if not every process gets a row.
    """
    batch = dataset.fixed_batch or min(wanted, count // processes)
    if batch < 1 or batch * processes > count:
        raise DataError(
            f"train: {count} rows of {dataset.spec} are too few for {processes} processes; give "
            f"at least {max(batch, 1) * processes}"
        )
    return batch


def chosen_variants(plan: Plan, rows: Rows, *, taught: bool) -> tuple[str, ...]:
    """What `auto` stands for: a mirrored image may be another class, unless a teacher says."""
    if plan.augment != ("auto",):
        return plan.augment
    if plan.shift is None and all(channel_axis(shape) is None for shape in rows.shapes):
        return ()
    return ("flip", "crop") if taught else ("crop",)


def fastest_format(
    module: LoweredModule,
    objective: Objective,
    batch: Batch,
    allowed: list[Format],
    history: History,
) -> Format:
    """Compute a real step in each format; the module keeps its values.

    What the loss does not depend on is not trained from here on. Raises ModelError if that is
    everything.
    """
    before = copied(module)
    module.train()
    reached: set[str] = set()
    for layout in allowed:
        arrange(module, layout)
        times = []
        for _ in range(1 + _TIMED if len(allowed) > 1 else 1):
            times.append(run_once(module, objective, batch, layout))
            reached |= {n for n, p in module.named_parameters() if p.grad is not None}
            module.zero_grad(set_to_none=True)
        if len(allowed) > 1:
            history.timed[str(layout)] = min(times)
    module.load_state_dict(before)
    if not reached:
        raise ModelError("train: the loss depends on none of the network's weights")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in reached)
    return min(allowed, key=lambda layout: history.timed.get(str(layout), 0.0))


def synchronised(module: LoweredModule, fabric: Fabric) -> nn.Module:
    """The module with batch statistics of all processes together, which only GPUs can do."""
    if fabric.world_size == 1 or fabric.device.type != "cuda":
        return module
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return converted
