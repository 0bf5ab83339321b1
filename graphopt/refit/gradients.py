"""Measure by gradients how much the loss depends on each channel of a family.

The loss needs no labels. Compared with its own predictions a network has no loss and no gradient,
so labels are drawn from the distribution that it predicts: the squared gradients are then those of
the true Fisher information, which is the curvature of the divergence from these predictions. Of
outputs that are no class scores, what is drawn is normal noise about them, of their own spread.
Where the data have labels, these are taken instead, as the papers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from graphopt.coupling import Coupling, Family, Member
from graphopt.coupling.statistics import Measure, Scores, Sensitivity, Statistics
from graphopt.data import Dataset
from graphopt.errors import DataError, ModelError
from graphopt.ir import Graph
from graphopt.lens import LoweredModule, limited_threads, lower
from graphopt.lens.dtypes import to_tensor
from graphopt.runtime.calibrating import observed_members
from graphopt.runtime.observing import batch_size_for

__all__ = ["sense"]

_Progress = Callable[[float], None]
_SURE = 1e-3
"""How far from 1 probabilities may add up, for outputs to be taken as such."""
_LEAST = 1e-12


def sense(
    coupling: Coupling,
    families: Sequence[Family],
    dataset: Dataset,
    measure: Measure,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: _Progress = lambda fraction: None,
) -> Statistics:
    """Run the coupled graph forth and back over a data set.

    Raises UnsupportedOp for an operator without a lowering, DataError for labels that are none of
    the classes and for gradients that are not finite.
    """
    row = _ROWS[measure]
    with limited_threads(threads):
        found = row(_Losses(coupling.graph, dataset, seed), coupling, families, progress)
    return Statistics(seed=seed, sensitivities=found)


class _Losses:
    """Runs a graph over a data set and gives the summed loss of each batch."""

    def __init__(self, graph: Graph, dataset: Dataset, seed: int) -> None:
        self.graph, self.dataset = graph, dataset
        self._draws = torch.Generator().manual_seed(seed)
        self._outputs = [
            name
            for name in graph.outputs
            if graph.producer(name) is not None and graph.is_float(name)
        ]
        if not self._outputs:
            raise ModelError("gradients: no output is a float tensor, so there is no loss")
        self.count = len(dataset)

    def module(self, shown: Sequence[str] = ()) -> LoweredModule:
        """The graph as a module that gives its float outputs, and then these tensors."""
        return lower(self.graph.with_outputs(list(dict.fromkeys([*self._outputs, *shown]))))

    def run(
        self, module: LoweredModule, size: int, shown: Sequence[str] = ()
    ) -> Iterator[tuple[int, torch.Tensor, list[torch.Tensor]]]:
        """Batch by batch: the number of rows, their summed loss, and the tensors shown."""
        names = list(dict.fromkeys([*self._outputs, *shown]))
        labels = self.dataset.labels
        pairs = zip(self.dataset.rows(size), self.dataset.batches(size), strict=True)
        for rows, feeds in pairs:
            made = module(*(to_tensor(feeds[name]) for name in self.graph.inputs))
            values = dict(zip(names, made if isinstance(made, tuple) else (made,), strict=True))
            outputs = [values[name] for name in self._outputs]
            loss = self._loss(outputs, None if labels is None else labels[rows])
            yield rows.stop - rows.start, loss, [values[name] for name in shown]

    def _loss(
        self, outputs: Sequence[torch.Tensor], labels: npt.NDArray[np.int64] | None
    ) -> torch.Tensor:
        logs = _log_probabilities(outputs[0])
        if logs is None:
            return torch.stack([self._noisy(output) for output in outputs]).sum()
        if labels is None:
            drawn = torch.multinomial(logs.detach().exp(), 1, generator=self._draws)[:, 0]
        else:
            wrong = labels[(labels < 0) | (labels >= logs.shape[1])]
            if len(wrong):
                raise DataError(
                    f"gradients: labels must be 0 to {logs.shape[1] - 1}, {self.dataset.spec} has "
                    f"{wrong[0]}; renumber them, or leave the labels out"
                )
            drawn = torch.from_numpy(labels)
        return functional.nll_loss(logs, drawn, reduction="sum")

    def _noisy(self, output: torch.Tensor) -> torch.Tensor:
        """Half the squared distance to a draw about the output has this gradient."""
        noise = torch.randn(output.shape, generator=self._draws, dtype=output.dtype)
        spread = output.detach().std() if output.numel() > 1 else output.new_ones(())
        return (output * noise).sum() / torch.clamp(spread, min=_LEAST)


def _log_probabilities(scores: torch.Tensor) -> torch.Tensor | None:
    """An output as logarithms of class probabilities; None where it is none of classes."""
    if scores.ndim < 2 or scores.shape[1] < 2 or any(size != 1 for size in scores.shape[2:]):
        return None
    flat = scores.reshape(scores.shape[:2])
    sums = flat.detach().sum(dim=1)
    if bool((flat >= 0).all()) and bool(((sums - 1).abs() < _SURE).all()):
        return torch.clamp(flat, min=_LEAST).log()
    return functional.log_softmax(flat, dim=1)


def _gradients(
    loss: torch.Tensor, tensors: Sequence[torch.Tensor], names: Sequence[str]
) -> list[torch.Tensor]:
    """Zeros for what the loss does not depend on."""
    found = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    for name, gradient in zip(names, found, strict=True):
        if not bool(torch.isfinite(gradient).all()):
            raise DataError(
                f"gradients: that of {name!r} is not finite; look at the data and the weights"
            )
    return list(found)


def _of_activations(
    losses: _Losses, coupling: Coupling, families: Sequence[Family], progress: _Progress
) -> Mapping[str, Sensitivity]:
    """|mean over places of value times gradient|, averaged over inputs, for what layers read."""
    wanted = {
        (family.name, *key): (family, member)
        for family in families
        for key, (member, read) in observed_members(coupling, family).items()
        if read
    }
    sums = {key: np.zeros(family.size) for key, (family, _) in wanted.items()}
    shown = list(dict.fromkeys(tensor for _, tensor, _ in wanted))
    module, done = losses.module(shown), 0
    # The gradient holds as much again, and so does what lies between the tensors that are shown.
    size = max(1, batch_size_for(losses.graph, shown, losses.dataset) // 2)
    for rows, loss, values in losses.run(module, size, shown):
        gradients = _gradients(loss, values, shown)
        products = {
            name: (value * gradient).detach()
            for name, value, gradient in zip(shown, values, gradients, strict=True)
        }
        for key, (family, member) in wanted.items():
            sums[key] += _averaged(products[member.tensor], member, family.size)
        done += rows
        progress(done / losses.count)
    found: dict[str, list[Scores]] = {}
    for (name, _, _), total in sums.items():
        found.setdefault(name, []).append(total / done)
    return {name: Sensitivity(activations=tuple(rows)) for name, rows in found.items()}


def _averaged(product: torch.Tensor, member: Member, size: int) -> Scores:
    """The sum over inputs of the absolute mean over all places of each channel."""
    inputs = product.shape[0] if member.axis else 1
    per_index = product.movedim(member.axis, 0).reshape(product.shape[member.axis], inputs, -1)
    channels = torch.from_numpy(member.channels)
    per_channel = per_index.new_zeros(size, inputs)
    per_channel.index_add_(0, channels, per_index.mean(2)[torch.from_numpy(member.places)])
    counts = torch.bincount(channels, minlength=size).clamp(min=1)
    return (per_channel / counts[:, None]).abs().sum(1).double().numpy()


def _of_weights(
    losses: _Losses, coupling: Coupling, families: Sequence[Family], progress: _Progress
) -> Mapping[str, Sensitivity]:
    """Squared sums of weight times gradient, input by input, averaged over inputs."""
    module, done = losses.module(), 0
    parameters = dict(module.named_parameters(remove_duplicate=False))
    held = {n: parameters[path] for path, n in module.binding.items() if path in parameters}
    reached = {
        family.name: [member for member in family.members if member.tensor in held]
        for family in families
    }
    gates = _gates(coupling.graph)
    names = sorted({member.tensor for members in reached.values() for member in members})
    weights: dict[str, Scores] = {f.name: np.zeros(f.size) for f in families if reached[f.name]}
    alone: dict[str, Scores] = {
        name: np.zeros(len(total))
        for name, total in weights.items()
        if any(member.tensor in gates for member in reached[name])
    }
    for rows, loss, _ in losses.run(module, 1):
        gradients = _gradients(loss, [held[name] for name in names], names)
        products = {
            name: (held[name] * gradient).detach().numpy()
            for name, gradient in zip(names, gradients, strict=True)
        }
        for totals, chosen in ((weights, None), (alone, gates)):
            for name, total in totals.items():
                members = [m for m in reached[name] if chosen is None or m.tensor in chosen]
                total += _summed(products, members, len(total)) ** 2 / rows
        done += 1
        progress(min(1.0, done * rows / losses.count))
    return {
        name: Sensitivity(weights=total / done, gates=alone[name] / done if name in alone else None)
        for name, total in weights.items()
    }


def _summed(products: Mapping[str, np.ndarray], members: Sequence[Member], size: int) -> Scores:
    """Add up all that goes with each channel."""
    total = np.zeros(size)
    for member in members:
        product = products[member.tensor]
        others = tuple(axis for axis in range(product.ndim) if axis != member.axis)
        per_index = product.sum(axis=others, dtype=np.float64)
        total += np.bincount(member.channels, per_index[member.places], size)
    return total


def _gates(graph: Graph) -> set[str]:
    """Scales and shifts of BatchNormalization."""
    return {
        str(node.inputs[place].name)
        for node in graph.nodes
        if node.op == "BatchNormalization"
        for place in (1, 2)
    }


_ROWS: Mapping[
    Measure,
    Callable[[_Losses, Coupling, Sequence[Family], _Progress], Mapping[str, Sensitivity]],
] = {
    Measure.ACTIVATION_GRADIENTS: _of_activations,
    Measure.WEIGHT_GRADIENTS: _of_weights,
}
