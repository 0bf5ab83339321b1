"""Zero the least filters after every epoch of a training, and let them grow again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from graphopt.coupling import Coupling, Family, Member
from graphopt.coupling.allocation import Candidates
from graphopt.coupling.importance import importance
from graphopt.coupling.selection import balanced
from graphopt.coupling.statistics import Statistics
from graphopt.ir import Graph
from graphopt.rewrite.linear import linear_layer
from graphopt.train.hooks import Hook, Training

__all__ = ["SoftZeros", "filters_of"]

Gone = Mapping[str, npt.NDArray[np.int64]]
"""For each family, by name, the channels that are zero."""


@dataclass
class SoftZeros(Hook):
    """Soft filter pruning (He et al. 2018): what is zero is chosen anew after each epoch.

    In between only filters are zero, so that they can grow again; in the end all that goes with
    the chosen channels is, the weights that read them too.
    """

    ratio: float
    criterion: str
    align: int
    coupling: Coupling = field(repr=False)
    families: Sequence[Family] = field(repr=False)

    def __post_init__(self) -> None:
        self._scratch = self.coupling.graph.clone()
        self._filters = {
            family.name: filters_of(self.coupling.graph, family) for family in self.families
        }
        self.gone: Gone = {}

    def __repr__(self) -> str:
        names = [family.name for family in self.families]
        return f"SoftZeros({self.ratio}, {self.criterion}, {self.align}, {names})"

    def after_epoch(self, training: Training, done: float) -> None:
        self._take(training)
        self.gone = self._choose()
        for family in self.families:
            self._zero(training, self._filters[family.name], self.gone[family.name])

    def finish(self, training: Training) -> None:
        self._take(training)
        zero = self._zero_filters()
        chosen = self._choose()
        # After the last epoch what is zero has just been chosen; by its zeros it would not be.
        self.gone = {
            name: zero[name] if len(zero[name]) == len(gone) else gone
            for name, gone in chosen.items()
        }
        spreads = _variances(self.coupling.graph)
        for family in self.families:
            members = [member for member in family.members if member.tensor not in spreads]
            self._zero(training, members, self.gone[family.name])

    def _take(self, training: Training) -> None:
        """The filters as they are now."""
        names = {member.tensor for members in self._filters.values() for member in members}
        weights = training.weights
        for name in names & weights.keys():
            array = weights[name].detach().to("cpu", torch.float32).numpy()
            self._scratch.set_constant(name, np.array(array, order="C"))

    def _choose(self) -> Gone:
        """The least filters of each family."""
        scores = {}
        for family in self.families:
            alone = replace(family, members=tuple(self._filters[family.name]))
            found = importance(self.criterion, alone, self._scratch, Statistics())
            assert found is not None, "a family has weights"
            scores[family.name] = found
        candidates = Candidates(self.families, scores, self.align)
        plan = candidates.plan(balanced(self.families, self.ratio, self.align))
        return {
            family.name: np.setdiff1d(np.arange(family.size), plan.get(family.name, range(0)))
            if family.name in plan
            else np.zeros(0, np.int64)
            for family in self.families
        }

    def _zero_filters(self) -> Gone:
        found = {}
        for family in self.families:
            zero = np.ones(family.size, np.bool_)
            for member in self._filters[family.name]:
                array = self._scratch.constant(member.tensor)
                assert array is not None, "a filter is a constant"
                others = tuple(axis for axis in range(array.ndim) if axis != member.axis)
                some = np.any(array, axis=others)[member.places]
                zero[member.channels[some]] = False
            found[family.name] = np.flatnonzero(zero)
        return found

    def _zero(
        self, training: Training, members: Sequence[Member], gone: npt.NDArray[np.int64]
    ) -> None:
        tensors = dict(_bound(training))
        with torch.no_grad():
            for member in members:
                tensor = tensors.get(member.tensor)
                places = member.places[np.isin(member.channels, gone)]
                if tensor is not None and len(places):
                    index = torch.from_numpy(places).to(tensor.device)
                    tensor.index_fill_(member.axis % tensor.dim(), index, 0.0)


def _bound(training: Training) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by the names of their initializers."""
    module = training.module
    tensors: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    for path, name in module.binding.items():
        if path in tensors:
            yield name, tensors[path]


def filters_of(graph: Graph, family: Family) -> list[Member]:
    """The weights that make a family's channels; all its weights, if no layer makes them."""
    makers = {}
    for node in graph.nodes:
        layer = linear_layer(graph, node)
        if layer is not None and (layer.outputs_first or layer.groups == 1):
            makers[str(node.inputs[1].name)] = 0 if layer.outputs_first else 1
    made = [member for member in family.members if makers.get(member.tensor) == member.axis]
    weights = [m for m in family.members if len(graph.shape(m.tensor) or ()) > 1]
    return made or weights or list(family.members)


def _variances(graph: Graph) -> set[str]:
    """What BatchNormalization divides by: of a channel that is zero it does not matter."""
    return {str(n.inputs[4].name) for n in graph.nodes if n.op == "BatchNormalization"}
