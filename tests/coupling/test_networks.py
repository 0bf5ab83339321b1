"""Whole networks: the same families whoever exported the file, and how far half of them cuts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graphopt.cost import cost
from graphopt.coupling import couple, mask, prepare, remove
from graphopt.coupling.selection import select
from graphopt.ir import Graph
from tests.asserting import assert_same_outputs

Find = Callable[[str], Path]


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_same_families_from_either_exporter(shared_model: Find, name: str) -> None:
    sizes = []
    for suffix in ("onnx", "dyn.onnx"):
        graph = Graph.load(shared_model(f"{name}.{suffix}"))
        prepare(graph)
        sizes.append([(f.size, f.exact) for f in couple(graph).families])
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cifar10jpeg_resnet20.bn", 0.26),
        ("mlperftiny_mobilenetv1_025_vww96.bn", 0.30),
        ("mtcnn_onet", 0.29),
        ("shufflenet_v2_x1_0", 0.28),
        ("squeezenet1_1", 0.33),
    ],
)
def test_half_of_every_family(shared_model: Find, name: str, left: float) -> None:
    model = Graph.load(shared_model(f"{name}.onnx")).to_model()
    graph = Graph.load(model)
    before = cost(graph).macs
    prepare(graph)
    coupling = couple(graph)
    rng = np.random.default_rng(0)
    plan = {f.name: select(f, rng.random(f.size), 0.5) for f in coupling.families}
    reference = mask(coupling, plan)
    remove(graph, coupling, plan)
    assert cost(graph).macs <= left * before
    shape = [dim.dim_value or 1 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {graph.inputs[0]: rng.standard_normal(shape).astype(np.float32)}
    assert_same_outputs(reference.to_model(), graph, feeds=feeds, tolerance=1e-4)
