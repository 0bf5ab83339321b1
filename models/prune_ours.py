"""Remove half of the channels of one network with graphopt, time it, and check cut == mask.

`python -m models.prune_ours NETWORK.onnx OUTPUT.onnx` prints one JSON object; run by
prune_peers.py. What is timed is processor time from the loaded network to the cut one: the pass,
with finding the families, scoring their channels and cutting.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from graphopt.coupling import couple, prepare
from graphopt.errors import GraphoptError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.runtime import Session, runnable_feeds
from passes.remove_channels import RemoveChannels

__all__ = ["main"]

RATIO = 0.5


def prune(network: str, output: str) -> dict[str, float]:
    """Cut a network; seconds of loading and of cutting, and the largest size of the process."""
    began = time.process_time()
    graph = Graph.load(network)
    loaded = time.process_time()
    RemoveChannels(ratio=RATIO).run(graph, Context(original=graph))
    done = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    graph.save(output)
    return {"load_s": loaded - began, "seconds": done - loaded, "peak_mb": peak}


def difference(network: str) -> dict[str, float]:
    """How far the cut network is from the masked one, over the range of each output.

    Where an output is a softmax, so is what goes into it looked at: saturated ones are all alike.
    """
    original = Graph.load(network)
    feeds = runnable_feeds(original, 0).arrays
    step, context = RemoveChannels(ratio=RATIO), Context(original=original)
    cut = original.clone()
    step.run(cut, context)
    names = [*original.outputs, *_logits(original)]
    masked = step.reference(original, context).with_outputs(names)
    with Session.open(masked, optimize="none") as session:
        wanted = session.run(feeds)
    with Session.open(cut.with_outputs(names), optimize="none") as session:
        got = session.run(feeds)
    return {"difference": max(map(_apart, got, wanted))}


def _logits(graph: Graph) -> list[str]:
    nodes = [graph.producer(name) for name in graph.outputs]
    return [n.inputs[0].name for n in nodes if n is not None and n.op in ("Sigmoid", "Softmax")]


def _apart(got: np.ndarray, wanted: np.ndarray) -> float:
    if got.shape != wanted.shape or not np.array_equal(np.isfinite(got), np.isfinite(wanted)):
        return float("inf")
    span = float(np.ptp(wanted)) or float(np.abs(wanted).max(initial=0.0)) or 1.0
    return float(np.abs(got.astype(np.float64) - wanted).max(initial=0.0)) / span


def families(network: str) -> list[tuple[int, bool]]:
    """The size of every family that can be cut, and whether its cut is exact."""
    graph = Graph.load(network)
    prepare(graph)
    return [(family.size, family.exact) for family in couple(graph).families]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network")
    parser.add_argument("output")
    parser.add_argument("--time-only", action="store_true")
    given = parser.parse_args()
    try:
        found: dict[str, object] = {**prune(given.network, given.output)}
        if not given.time_only:
            found["families"] = families(given.network)
            found.update(difference(given.network))
    except GraphoptError as error:
        found = {"failure": str(error), "families": families(given.network)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
