"""Go through a graph's layers from the front and collect what may take their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.data import Dataset
from graphopt.factorize.kernels import Kernel, Sizes, kernel_of
from graphopt.factorize.methods import METHODS
from graphopt.factorize.offers import Offer, Rule, Scene, offers_of
from graphopt.factorize.replacing import replacement
from graphopt.factorize.sampling import sample_of
from graphopt.ir import Graph
from graphopt.refit.frontier import Frontier
from graphopt.runtime.session import Session

__all__ = ["Survey", "sizes_of", "survey", "with_offers"]


@dataclass(frozen=True, eq=False)
class Survey:
    """Offers by the output of the layer, the layers themselves, and why others are left alone."""

    kernels: Mapping[str, Kernel]
    offers: Mapping[str, list[Offer]]
    left_alone: Mapping[str, str]


def sizes_of(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, Sizes]:
    """The sizes of every layer that may be factorized, in a run on these feeds."""
    ends = {}
    for node in graph.nodes:
        kernel = kernel_of(graph, node)
        if isinstance(kernel, Kernel):
            ends[kernel.output] = str(node.inputs[0].name)
    computed = list(dict.fromkeys(n for pair in ends.items() for n in pair if n not in feeds))
    if not computed:
        return {}
    with Session.open(graph.with_outputs(computed), optimize="none") as session:
        given = {port.name: feeds[port.name] for port in session.inputs}
        made = dict(zip(computed, session.run(given), strict=True))
    shapes = {name: array.shape for name, array in {**feeds, **made}.items()}
    return {output: Sizes(shapes[data], shapes[output]) for output, data in ends.items()}


def survey(
    scene: Scene,
    rule: Rule,
    data: Dataset | None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Survey:
    """Collect offers for all layers of the main scope; each sees the original's activations."""
    walk = None if data is None else Frontier(scene.graph, data, threads=scene.threads)
    kernels: dict[str, Kernel] = {}
    offers: dict[str, list[Offer]] = {}
    left_alone: dict[str, str] = {}
    nodes = scene.graph.nodes
    for number, node in enumerate(nodes):
        progress(number / len(nodes))
        kernel = kernel_of(scene.graph, node)
        if isinstance(kernel, str):
            left_alone[node.inputs[1].name] = kernel
        if not isinstance(kernel, Kernel):
            continue
        if not any(METHODS[name].fits(kernel) for name in scene.methods):
            left_alone[kernel.name] = f"of {', '.join(scene.methods)} nothing fits it"
            continue
        sample = None if walk is None else sample_of(kernel, walk, scene.seed + number)
        found = offers_of(scene, kernel, sample, rule)
        if found:
            offers[kernel.output] = found
            kernels[kernel.output] = Kernel(kernel.layer)  # without its tensor, which is large
        else:
            left_alone[kernel.name] = _REASONS[scene.goal]
    return Survey(kernels, offers, left_alone)


_REASONS = {
    "latency": "no replacement was measured to be faster",
    "size": "no replacement is smaller",
    "macs": "no replacement takes less work",
}


def with_offers(graph: Graph, chosen: Mapping[str, Offer]) -> tuple[Graph, list[str]]:
    """A copy with these layers replaced, and the tensors between the layers of the chains."""
    made, between = graph.clone(), []
    for output, offer in chosen.items():
        node = made.producer(output)
        kernel = None if node is None else kernel_of(made, node)
        assert isinstance(kernel, Kernel), "a layer that was offered for is there"
        assert offer.chain is not None, "what is chosen has been built"
        edit, names = replacement(made, kernel, offer.chain)
        made.apply(edit)
        between += names
    return made, between
