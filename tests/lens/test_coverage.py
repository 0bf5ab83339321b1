"""The operator test cases of the onnx wheel, and the shared models, through the trainable view."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from graphopt.errors import UnsupportedOp
from graphopt.ir import Graph
from graphopt.lens import LOWERINGS, lower, trainable
from graphopt.lens.weights import PARAMETRIC, SETTINGS
from graphopt.runtime import runnable_feeds
from models.lowering_coverage import collect, run_cases
from tests.lens.checking import outputs_of

MODELS = sorted(Path(os.environ.get("GRAPHOPT_MODELS", "absent")).glob("*.onnx"))

ROUNDING = 1e-6
"""Of 1: ONNX Runtime's sigmoid gives 0 below 1e-7, and noise is all background to a detector."""


def test_tables_name_operators_that_are_lowered() -> None:
    assert set(SETTINGS) <= set(LOWERINGS) | {"MelWeightMatrix"}
    assert set(LOWERINGS) >= PARAMETRIC
    assert all(row.__doc__ or row.__name__ for row in LOWERINGS.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_case_whose_operators_have_a_row_agrees() -> None:
    coverage = run_cases(collect())
    assert coverage.failed == {}
    assert len(coverage.operators) >= 150
    assert len(coverage.agreed) >= 1100


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_shared_models(path: Path) -> None:
    graph = Graph.load(path)
    before = graph.content_hash()
    try:
        module = lower(graph)
    except UnsupportedOp as error:
        pytest.skip(str(error))
    found = runnable_feeds(graph, seed=0)
    feeds = found.arrays
    with torch.no_grad():
        results = outputs_of(module, graph.inputs, feeds)
        outputs_of(module.train(), graph.inputs, feeds)
    for want, got in zip(found.outputs, results, strict=True):
        limit = max(1e-4 * np.ptp(want), ROUNDING)
        assert float(np.abs(got.numpy() - want).max()) <= limit
    del module, results
    with trainable(graph) as view:
        made = outputs_of(view, graph.inputs, feeds)
        loss = [out.square().sum() for out in made if out.is_floating_point()]
        torch.autograd.backward(loss)
        missing = [name for name, p in view.named_parameters() if p.grad is None]
    assert not missing or any(node.op == "If" for node in graph.nodes), missing
    assert graph.content_hash() == before
