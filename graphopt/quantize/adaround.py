"""Round the stored weights of each layer anew, so that it gives what it gave in the original.

Layers are visited from front to back. What a layer reads comes through the layers rounded before,
what it should give is the original's. Once the last layer of a block has its codes, those of all
its layers are trained once more, together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphopt import train
from graphopt.data import Dataset
from graphopt.errors import UnsupportedOp
from graphopt.ir import Array, Graph, part
from graphopt.quantize.layer_rounding import Manner, Rows, round_layer
from graphopt.quantize.references import Reference, noted_references
from graphopt.quantize.regions import Region, find_regions
from graphopt.quantize.stored_layers import StoredLayer, find_stored_layers, unfit_layers
from graphopt.quantize.targets import Target, find_target
from graphopt.refit.frontier import Frontier

__all__ = ["Anew", "round_anew"]

_ROWS = 1 << 15
"""Rows of what a layer reads that it is fitted on; of more, places are drawn for each input."""

_BYTES = 512 << 20
"""What the rows of one layer may hold."""

_FEWEST = 4
"""Inputs in a step that trains a block, however large they are."""


@dataclass
class Anew:
    """The relative square error of each layer: rounded to the nearest, and with its own codes.

    Of each block, by what it gives: with the codes of its layers, and with its own.
    """

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    blocks: dict[str, tuple[float, float]] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)


def round_anew(
    graph: Graph,
    original: Graph,
    dataset: Dataset,
    manner: Manner,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Anew:
    """Give every layer with stored weights, and an original to compare with, new codes."""
    walk = _Walk(
        graph,
        Frontier(graph, dataset, threads=manner.threads),
        Frontier(original, dataset, threads=manner.threads),
        noted_references(graph),
        manner,
    )
    layers = find_stored_layers(graph)
    regions = walk.regions(layers) if manner.block_steps else {}
    found = Anew(left_alone=unfit_layers(graph))
    rounded: dict[str, tuple[StoredLayer, train.Unrounded]] = {}
    for number, layer in enumerate(layers):
        progress(number / len(layers))
        name = layer.layer.output
        target = find_target(graph, original, walk.references, layer)
        if isinstance(target, str):
            found.left_alone[name] = target
        else:
            rows = _gather(walk.made, walk.wanted, layer, target, manner.seed + number)
            own = manner.of_ends if number in (0, len(layers) - 1) else manner
            found.errors[name], unrounded = round_layer(graph, layer, rows, own)
            rounded[name] = layer, unrounded
        region = regions.get(name)
        inside = [rounded[each] for each in region.layers if each in rounded] if region else []
        if region and len(inside) > 1:
            errors = walk.round_together(region, inside)
            if isinstance(errors, str):
                found.left_alone[region.gives] = errors
            else:
                found.blocks[region.gives] = errors
    return found


@dataclass(frozen=True, eq=False)
class _Walk:
    """The network as it is now and the original, both seen from front to back."""

    graph: Graph
    made: Frontier
    wanted: Frontier
    references: Mapping[str, Reference]
    manner: Manner

    def regions(self, layers: Sequence[StoredLayer]) -> dict[str, Region]:
        """The blocks, by their last layer, that end in a tensor the original computes too."""
        original = self.wanted.graph

        def known(name: str) -> bool:
            reference = self._reference(name)
            return reference.tensor in original and original.producer(reference.tensor) is not None

        names = [layer.layer.output for layer in layers]
        return {region.layers[-1]: region for region in find_regions(self.graph, names, known)}

    def round_together(
        self, region: Region, layers: Sequence[tuple[StoredLayer, train.Unrounded]]
    ) -> tuple[float, float] | str:
        """Train the codes of a block's layers; its error before and after, or why they stay."""
        manner = self.manner
        held = self._held(region)
        if held is None:
            return "what enters or leaves this block has not one row of one shape for each input"
        reads, aim = held
        weights = [layer.layer.weight for layer, _ in layers]
        task = train.JointTask(
            part(self.graph, region.reads, [region.gives], weights),
            tuple(reads),
            tuple(unrounded for _, unrounded in layers),
            aim,
        )
        places = max(math.prod(array.shape[2:]) for array in (*reads, aim))
        batch = self.made.dataset.fixed_batch or max(-(-manner.batch // places), _FEWEST)
        descent = train.Descent(
            manner.block_steps, batch, manner.rate, manner.sharpness, manner.seed, manner.device
        )
        try:
            codes, errors = train.learn_joint_rounding(task, descent)
        except UnsupportedOp as error:
            return str(error)
        for (layer, _), code in zip(layers, codes, strict=True):
            old = _codes(self.graph, layer)
            self.graph.set_constant(layer.weight.codes, code.astype(old.dtype))
        self.made.forget_behind(region.layers)
        return errors

    def _reference(self, name: str) -> Reference:
        return self.references.get(name, Reference(name, {}))

    def _held(self, region: Region) -> tuple[list[Array], Array] | None:
        """What enters a block now, and what left it in the original, for as many as fit.

        None where one of them has not one row for each input, or rows differ in shape.
        """
        reference, limit, count = self._reference(region.gives), 0, 0
        whole, unit = len(self.made.dataset), self.made.dataset.fixed_batch or 1
        reads: list[list[Array]] = []
        aims: list[Array] = []
        shapes: list[tuple[int, ...]] = []
        pairs = zip(
            self.made.batches(region.reads), self.wanted.batches([reference.tensor]), strict=True
        )
        for found, original in pairs:
            now = [found[name] for name in region.reads]
            aim = reference.of(original[reference.tensor])
            count += len(aim)
            rows = [array[:1] for array in (*now, aim)]
            shapes = shapes or [row.shape for row in rows]
            if any(array.shape[:1] != aim.shape[:1] for array in now):
                return None
            if [row.shape for row in rows] != shapes:
                return None
            each = sum(row.nbytes for row in rows)
            limit = limit or max(_BYTES // each // unit, 1) * unit
            room = limit - sum(map(len, aims))
            if room > 0:
                reads.append([array[:room] for array in now])
                aims.append(aim[:room])
        if count != whole - whole % unit:
            return None
        return [np.concatenate(parts) for parts in zip(*reads, strict=True)], np.concatenate(aims)


def _gather(
    made: Frontier, wanted: Frontier, layer: StoredLayer, target: Target, seed: int
) -> Rows:
    rng, read = np.random.default_rng(seed), layer.layer
    inputs: list[Array] = []
    targets: list[Array] = []
    groups, outputs, columns = layer.matrix(_codes(made.graph, layer)).shape
    count = max(min(_ROWS, _BYTES // (4 * groups * (outputs + columns))), 1)
    pairs = zip(made.batches([read.data]), wanted.batches([target.tensor]), strict=True)
    for found, original in pairs:
        if sum(array.shape[1] for array in inputs) >= count:
            continue
        data = found[read.data]
        places = read.places(data, max(count // len(made.dataset), 1), rng)
        taken = read.rows(data, places)
        inputs.append(taken[:, :, :-1] if read.has_bias else taken)
        targets.append(read.results(target.reference.of(original[target.tensor]), places))
    return Rows(
        np.concatenate(inputs, axis=1), np.concatenate(targets, axis=1), (target.low, target.high)
    )


def _codes(graph: Graph, layer: StoredLayer) -> Array:
    codes = graph.constant(layer.weight.codes)
    assert codes is not None, "codes are constant"
    return codes
