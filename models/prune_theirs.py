"""Prune one network with a peer, in the peer's own environment, and time it.

`python -m models.prune_theirs torch-pruning|onnxsim NETWORK OUTPUT.onnx` prints one JSON object;
run by prune_peers.py. NETWORK is an ONNX file or the name of a network of architectures.py. What is
timed is processor time from the loaded network to the pruned one: for Torch-Pruning the pruner
(which traces the module and builds its dependency graph) and its one step, for onnxsim the call.
The module is given to Torch-Pruning as a person would write it: ordinary layers, the layers that
make the outputs left alone, and the heads of attention named where the network says them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from graphopt.coupling import couple
from graphopt.ir import Graph
from graphopt.runtime import runnable_feeds
from models.architectures import ARCHITECTURES, build
from models.torch_modules import as_layers

__all__ = ["main"]

RATIO = 0.5


def torch_pruning(network: str, output: Path) -> dict[str, float]:
    """Prune a module by the L2 norm; export it, where it still runs."""
    peer = importlib.import_module("torch_pruning")

    module, inputs, kept, heads = _module(network)
    _sum(module(*inputs)).backward()  # type: ignore[no-untyped-call]  # what torch sets up once is not the peer's time
    module.zero_grad()
    began = time.process_time()
    pruner = peer.pruner.MagnitudePruner(
        module,
        inputs if len(inputs) > 1 else inputs[0],
        importance=peer.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=kept,
        num_heads=heads,
    )
    built = time.process_time()
    pruner.step()
    done = time.process_time()
    with torch.no_grad():
        module(*inputs)
    torch.onnx.export(module, inputs, output, dynamo=False)
    return {"build_s": built - began, "prune_s": done - built, "seconds": done - began}


def _module(
    network: str,
) -> tuple[nn.Module, tuple[torch.Tensor, ...], list[nn.Module], Mapping[nn.Module, int]]:
    """A module, inputs for it, layers to be left alone, and the heads of layers that have some."""
    if network in ARCHITECTURES:
        reference = ARCHITECTURES[network]
        built = build(network)
        image = torch.randn(1, *reference.shape)
        return built, (image,), reference.outputs(built), reference.heads(built)
    graph = Graph.load(network)
    frozen = [family for family in couple(graph).frozen if family.frozen is not None]
    makes = {
        member.tensor
        for family in frozen
        if family.frozen is not None and family.frozen.node.startswith("output")
        for member in family.members
    }
    feeds = runnable_feeds(graph, 0, batch=1).arrays
    inputs = tuple(torch.from_numpy(np.asarray(feeds[name])) for name in graph.inputs)
    module, names = as_layers(graph)
    layers = dict(module.named_modules())
    return module, inputs, [layers[path] for path, name in names.items() if name in makes], {}


def _sum(made: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    parts = [made] if isinstance(made, torch.Tensor) else list(made)
    return torch.stack([part.sum() for part in parts if part.requires_grad]).sum()


def onnxsim(network: str, output: Path) -> dict[str, float]:
    """Simplify, as its own pruning expects, then prune; only the pruning is timed."""
    model, _ = importlib.import_module("onnxsim").simplify(onnx.load(network))
    prune = importlib.import_module("onnxsim.pruning").apply_structured_pruning
    began = time.process_time()
    pruned = prune(model, sparsity=RATIO)
    done = time.process_time()
    onnx.save(pruned, output)
    return {"seconds": done - began}


TOOLS = {"onnxsim": onnxsim, "torch-pruning": torch_pruning}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("network")
    parser.add_argument("output", type=Path)
    parser.add_argument("--memory-gb", type=float, default=8.0)
    given = parser.parse_args()
    limit = int(given.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = TOOLS[given.tool](given.network, given.output)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
