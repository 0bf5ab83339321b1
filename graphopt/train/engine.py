"""Train a graph through its torch.fx view, on Lightning Fabric."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric

from graphopt.data import Dataset, input_specs
from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.lens import LoweredModule, limited_threads, lower, write_back
from graphopt.train.batches import Drawing, Feed
from graphopt.train.constraining import keepers
from graphopt.train.course import Course, Job, Setup
from graphopt.train.devices import check_alike, find_device, launch
from graphopt.train.formats import Format, arrange, candidates
from graphopt.train.history import History
from graphopt.train.hooks import Hook, Training, trained_weights
from graphopt.train.objectives import Objective
from graphopt.train.opening import open_batch
from graphopt.train.optimizing import make_optimizer
from graphopt.train.pace import Pace
from graphopt.train.plan import Plan, Resources
from graphopt.train.preparing import (
    batch_size,
    chosen_variants,
    fastest_format,
    part_rows,
    synchronised,
)
from graphopt.train.rows import Rows
from graphopt.train.snapshots import Checkpoint, identity
from graphopt.train.teaching import Teacher

__all__ = ["fit"]

_RECITAL = 0.2
"""The part of the time that computing a teacher's outputs beforehand may take."""


def fit(
    graph: Graph,
    dataset: Dataset,
    objective: Objective,
    plan: Plan,
    *,
    teacher: Graph | None = None,
    resources: Resources | None = None,
    hooks: Sequence[Hook] = (),
) -> History:
    """Train the graph's weights in place to make the mean of `objective` small.

    The data are taken as the graph's inputs want them. Weights that the graph notes as pruned keep
    their zeros, shared ones are trained as the values they share. What `teacher` gives for a batch
    is in its `taught`. The graph gets its new weights when all is over: an error or an
    interruption leaves it as it was. If the loss stops being finite the best weights so far are
    kept, and the history tells the step. A batch is no larger than the rows there are. Raises
    UnsupportedOp for an operator that cannot be trained through, ModelError for a graph without
    weights, DataError for rows that cannot be trained on, RecipeError for a device that is not
    there.
    """
    began = time.perf_counter()
    resources = resources or Resources()
    device = find_device(resources.device)
    view, teaching = _for_batches(graph, teacher, dataset)
    module = lower(view)
    hooks = (*hooks, *keepers(graph))
    _check_weights(module)
    dataset = dataset.bind(input_specs(view))
    taught = None if teaching is None else lower(teaching)
    checkpoint = None
    if resources.checkpoints is not None:
        key = identity(graph, teacher, dataset, plan, (resources.seed, objective, *hooks))
        checkpoint = Checkpoint(resources.checkpoints, key)
    cards = list(range(torch.cuda.device_count())) if device == "cuda" else []
    with limited_threads(resources.threads), torch.random.fork_rng(devices=cards):
        torch.manual_seed(resources.seed)
        for hook in hooks:
            hook.start(Training(module))
        job = Job(module, objective, plan, resources, tuple(hooks), checkpoint)
        fabric = launch(device, _precision(module))
        check_alike(fabric, module)
        saved = checkpoint.load() if checkpoint and fabric.global_rank == 0 else None
        saved = saved if fabric.world_size == 1 else fabric.broadcast(saved)
        history = History(device=device)
        fixed = None if saved is None else Format(*saved.layout)
        order = _Order(view, dataset, taught, device, began)
        setup = _set_up(fabric, job, order, history, fixed)
        with warnings.catch_warnings():
            # A kernel of one place has two layouts that are the same; only their names differ.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
            Course(job, setup, history).run(saved)
        history.changed = write_back(module, graph)
    return history


def _for_batches(
    graph: Graph, teacher: Graph | None, dataset: Dataset
) -> tuple[Graph, Graph | None]:
    """Student and teacher for batches of any size, or both for the one that they insist on."""
    view = open_batch(graph, dataset)
    if view is graph or teacher is None:
        return view, teacher
    teaching = open_batch(teacher, dataset)
    return (graph, teacher) if teaching is teacher else (view, teaching)


@dataclass(frozen=True)
class _Order:
    """What is trained, on what."""

    graph: Graph
    dataset: Dataset
    taught: LoweredModule | None
    device: str
    began: float


def _set_up(
    fabric: Fabric, job: Job, order: _Order, history: History, fixed: Format | None
) -> Setup:
    """Read the rows, choose how to compute (unless that is `fixed`), place the networks."""
    module, plan = job.module, job.plan
    module.to(fabric.device)
    trained, held = part_rows(order.dataset, plan, job.resources.seed)
    rows = Rows(order.dataset, order.graph, fabric.device)
    feed = Feed(rows, trained, _drawing(job, order, rows, len(trained), fabric))
    pace = Pace(plan, feed.epoch_steps, fabric, order.began)
    layout = _choose(job, order, feed, fabric, history, fixed)
    history.format = str(layout)
    if layout.bf16:
        fabric = launch(order.device, "bf16-mixed")
    feed.channels_last = layout.channels_last
    arrange(module, layout)
    teacher = None
    if order.taught is not None:
        arrange(order.taught, layout)
        teacher = Teacher(order.taught, fabric)
        teacher.learn_by_heart(feed, most_epochs=plan.most_epochs, seconds=_recital_seconds(plan))
    optimizer = make_optimizer(module.parameters(), plan)
    wrapped, optimizer = fabric.setup(synchronised(module, fabric), optimizer)
    return Setup(fabric, layout, wrapped, optimizer, feed, held, teacher, pace)


def _drawing(job: Job, order: _Order, rows: Rows, count: int, fabric: Fabric) -> Drawing:
    processes = fabric.world_size
    return Drawing(
        batch=batch_size(order.dataset, count, job.plan.batch, processes),
        augment=chosen_variants(job.plan, rows, taught=order.taught is not None),
        shift=job.plan.shift,
        variants=job.plan.variants,
        seed=job.resources.seed,
        rank=fabric.global_rank,
        processes=processes,
    )


def _choose(
    job: Job, order: _Order, feed: Feed, fabric: Fabric, history: History, fixed: Format | None
) -> Format:
    """The format; with several processes all take what the first one finds."""
    batch = next(feed.in_order(feed.trained[: feed.batch]))
    if order.taught is not None:
        batch = Teacher(order.taught.to(fabric.device), fabric).teach(batch)
    allowed = [fixed] if fixed else candidates(job.plan, job.module, fabric.device)
    best = fastest_format(job.module, job.objective, batch, allowed, history)
    return best if fabric.world_size == 1 else fabric.broadcast(best)


def _recital_seconds(plan: Plan) -> float:
    return math.inf if plan.minutes is None else 60 * plan.minutes * _RECITAL


def _check_weights(module: LoweredModule) -> None:
    weights = trained_weights(module)
    if not weights:
        raise ModelError("train: the network has no weights that could be trained")
    for name, parameter in weights.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ModelError(
                f"train: weights must be float32 or float64 to be trained, {name!r} is "
                f"{str(parameter.dtype).removeprefix('torch.')}; train before narrowing them"
            )


def _precision(module: LoweredModule) -> str:
    doubles = any(p.dtype == torch.float64 for p in module.parameters())
    return "64-true" if doubles else "32-true"
