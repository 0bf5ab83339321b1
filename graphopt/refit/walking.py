"""Solve the layers of a cut graph one after the other, from front to back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Array, Graph
from graphopt.refit.frontier import Frontier
from graphopt.refit.goals import Goal, goal_of
from graphopt.refit.layers import Doubles, Layer, check_weights, find_layer, layer_before
from graphopt.refit.picking import Choice, pick
from graphopt.refit.settings import Settings
from graphopt.refit.solving import Chunk, Moments, least_squares, rectified
from graphopt.refit.tracing import Traces

__all__ = ["Fit", "changed_layers", "refit"]

ROWS = 1 << 18
"""Rows that one layer is fitted on; of more, places are drawn for each input."""

_LEAST_INPUTS = 64
"""Inputs that two layers are fitted on together, however many rows they give."""

WIDEST = 12_000
"""Columns; the moments of a wider layer would not fit in memory."""


@dataclass
class Fit:
    """What became of each layer: its error relative to the target's energy, before and after."""

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    together: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The same for layers that were solved with the one before them, of what passes a ReLU."""
    picked: dict[str, list[int]] = field(default_factory=dict)
    """For each family that was cut on the way, the channels that stay."""
    needed: int = 0
    """Inputs that the layers left alone for want of rows would need."""


@dataclass(frozen=True, eq=False)
class _Task:
    """One layer, what it should reproduce, and the walks over both graphs."""

    layer: Layer
    goal: Goal
    cut: Frontier
    original: Frontier
    kept: Mapping[int, npt.NDArray[np.int64]]
    count: int
    seed: int
    choice: Choice | None

    def batches(self, data: str) -> Iterator[tuple[Mapping[str, Array], Array]]:
        """A tensor and the shortcut, and the target, batch by batch."""
        wanted = [data, *([self.goal.shortcut] if self.goal.shortcut else [])]
        pairs = zip(
            self.cut.batches(wanted), self.original.batches([self.goal.tensor]), strict=True
        )
        for made, aim in pairs:
            target = aim[self.goal.tensor]
            for axis, indices in self.kept.items():
                target = np.take(target, indices, axis=axis)
            yield made, target

    def chunks(self) -> Iterator[Chunk]:
        """Rows, targets and shortcuts at the same places, batch by batch."""
        layer, rng = self.layer, np.random.default_rng(self.seed)
        for made, target in self.batches(layer.data):
            places = layer.places(made[layer.data], self.count, rng)
            beside = made[self.goal.shortcut] if self.goal.shortcut else None
            yield Chunk(
                layer.rows(made[layer.data], places),
                layer.results(target, places),
                None if beside is None else layer.results(beside, places),
            )


def changed_layers(graph: Graph, changed: Collection[str]) -> list[Layer]:
    """The layers that read what a change of these tensors reaches, in order."""
    reached = set(changed)
    found = []
    for node in graph.nodes:
        if any(tensor.name in reached for tensor in node.inputs):
            reached.update(tensor.name for tensor in node.outputs)
            layer = find_layer(graph, node)
            if layer is not None and layer.data in reached:
                found.append(layer)
    return found


def refit(
    graph: Graph,
    original: Graph,
    traces: Traces,
    dataset: Dataset,
    settings: Settings,
    choices: Mapping[str, Choice] | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Fit:
    """Solve every layer behind a cut so that the original's sums are reproduced.

    Inputs of each layer come from the cut graph with all layers before it solved, targets are the
    original's tensors of the same name; where a shortcut is added, its error is made up for.
    `choices`, by the output of the layer that reads them, are families that are still whole; they
    are cut when it is that layer's turn.
    Raises DataError if there are too few inputs for any layer, NotFinite for NaN in weights.
    """
    check_weights(graph)
    choices = choices or {}
    changed = {name for name in traces if graph.constant(name) is None}
    layers = changed_layers(graph, changed | {choice.data for choice in choices.values()})
    cut = Frontier(graph, dataset, threads=settings.threads)
    whole = Frontier(original, dataset, threads=settings.threads)
    fit = Fit()
    for number, (layer, goal) in enumerate(zip(layers, _goals(graph, layers), strict=True)):
        progress(number / max(len(layers), 1))
        if goal.tensor not in original or original.constant(goal.tensor) is not None:
            fit.left_alone[layer.output] = f"the original has no tensor {goal.tensor!r}"
            continue
        kept = traces.get(goal.tensor, {})
        count = -(-ROWS // len(dataset))
        choice = choices.get(layer.output)
        task = _Task(layer, goal, cut, whole, kept, count, settings.seed + number, choice)
        solved = _solve(task, settings, fit)
        if settings.joint and solved is not None:
            _together(solved, settings, fit)
    if layers and not fit.errors and fit.needed:
        raise DataError(
            f"refit: {len(dataset)} inputs are too few to solve any layer; give at least "
            f"{fit.needed}"
        )
    return fit


def _goals(graph: Graph, layers: Sequence[Layer]) -> list[Goal]:
    """What each layer should reproduce when those before it are solved."""
    pending = {layer.output for layer in layers}
    found = []
    for layer in layers:
        found.append(goal_of(graph, layer, pending))
        pending.discard(layer.output)
    return found


def _solve(task: _Task, settings: Settings, fit: Fit) -> _Task | None:
    """Solve one layer; the task as it is afterwards, None if the layer was left alone."""
    layer, graph = task.layer, task.cut.graph
    old = layer.matrix(graph)
    groups, columns, outputs = old.shape
    if columns > WIDEST:
        fit.left_alone[layer.output] = f"{columns} weights per output are too many to solve for"
        return None
    moments = Moments.empty(groups, columns, outputs, bias=layer.has_bias)
    for chunk in task.chunks():
        moments.add(chunk.rows, chunk.wanted)
    if moments.rows < columns:
        needed = -(-len(task.cut.dataset) * columns // max(moments.rows, 1))
        fit.needed = max(fit.needed, needed)
        fit.left_alone[layer.output] = f"needs at least {needed} inputs"
        return None
    before = moments.error(old)
    if task.choice is not None:
        task, moments, old = _picked(task, moments, old, settings, fit)
    matrix = _solution(task, moments, old, settings)
    if matrix is None:
        fit.left_alone[layer.output] = "its inputs are too alike to solve for"
        return None
    after = moments.error(matrix)
    layer = task.layer.write(graph, matrix)
    energy = max(moments.energy, 1e-300)
    fit.errors[layer.output] = before / energy, after / energy
    return replace(task, layer=layer)


def _together(task: _Task, settings: Settings, fit: Fit) -> None:
    """Refine a layer with the one that it alone reads, on as many inputs as rows allow."""
    from graphopt.lens import limited_threads  # torch takes long to load
    from graphopt.refit.blocks import Batch, Block
    from graphopt.refit.joint import solve_together

    graph, second = task.cut.graph, task.layer
    first = layer_before(graph, second)
    if first is None or max(layer.matrix(graph).shape[1] for layer in (first, second)) > WIDEST:
        return
    first = first.write(graph, first.matrix(graph))  # now with a bias
    read = list(dict.fromkeys([first.data, *([task.goal.shortcut] if task.goal.shortcut else [])]))
    batches, rows = [], 0
    for made, target in task.batches(first.data):
        batches.append(Batch(tuple(made[name] for name in read), target))
        rows += target.size // target.shape[second.channel_axis]
        if rows >= ROWS and sum(len(batch.aim) for batch in batches) >= _LEAST_INPUTS:
            break
    with limited_threads(settings.threads):
        block = Block(graph, (first, second), task.goal, batches, task.seed)
        try:
            matrices, error, left = solve_together(block, settings.joint)
        except np.linalg.LinAlgError:
            return  # what the layers read is too alike
    for layer, matrix in zip((first, second), matrices, strict=True):
        layer.write(graph, matrix)
    task.cut.forget_behind([first.output])
    fit.together[second.output] = error, left


def _picked(
    task: _Task, moments: Moments, old: Doubles, settings: Settings, fit: Fit
) -> tuple[_Task, Moments, Doubles]:
    """Cut the family that the layer reads; what is left of the task."""
    assert task.choice is not None, "there is a family to cut"
    kept, columns = pick(task.cut, task.choice, moments, settings.damping)
    fit.picked[task.choice.family] = kept
    maker = task.cut.graph.producer(task.layer.node.outputs[0].name)
    layer = None if maker is None else find_layer(task.cut.graph, maker)
    assert layer is not None, "a layer that was cut is a layer still"
    return replace(task, layer=layer), moments.taking(columns), old[:, columns]


def _solution(task: _Task, moments: Moments, old: Doubles, settings: Settings) -> Doubles | None:
    """The fitted matrix; None where the moments are singular in spite of the ridge."""
    try:
        matrix = least_squares(moments, settings.damping, old)
        alone = not settings.joint or layer_before(task.cut.graph, task.layer) is None
        passing = task.goal.passing
        if passing is not None and settings.rounds and alone:
            matrix = rectified(
                moments, task.chunks, matrix, settings.damping, settings.rounds, passing
            )
    except np.linalg.LinAlgError:
        return None
    return matrix if np.isfinite(matrix).all() else None
