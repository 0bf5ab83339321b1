"""PyTorch modules become graphs: equal outputs, names kept, BatchNorm kept, reasons given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graphopt.cost import cost
from graphopt.data import Dataset
from graphopt.errors import DataError, ModelError, RecipeError
from graphopt.frontend import load_model, trace
from graphopt.ir import Graph
from graphopt.lens import lower
from graphopt.passbase import Context
from models.networks import NETWORKS
from passes.remove_channels import RemoveChannels
from passes.restore_batch_norm import RestoreBatchNorm
from passes.slim import Slim
from tests.architectures import ARCHITECTURES
from tests.asserting import assert_valid, run_model


def assert_traced(module: nn.Module, x: torch.Tensor) -> Graph:
    """The graph and its trainable view give what the module gives, for another batch size too."""
    module.eval()
    graph = trace(module, x)
    more = torch.cat([x, x.flip(0), x])
    with torch.no_grad():
        made, seen = module(more), lower(graph)(more)
    results = run_model(graph, {graph.inputs[0]: more.numpy()})
    wants, views = ([r] if isinstance(r, torch.Tensor) else list(r) for r in (made, seen))
    for want, got, view in zip(wants, results, views, strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-4 * float(want.abs().max()))
        torch.testing.assert_close(view, want, rtol=0, atol=1e-4 * float(want.abs().max()))
    constants = graph.constants()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            np.testing.assert_array_equal(constants[name], tensor.numpy(), err_msg=name)
    assert (graph.shape(graph.inputs[0]) or ("",))[0] == "batch"
    return graph


def test_a_residual_network() -> None:
    module = ARCHITECTURES["residual"]()
    module.train()
    graph = assert_traced(module, torch.randn(1, 3, 8, 8))
    assert [node.op for node in graph.nodes].count("BatchNormalization") == 1
    stem = next(node for node in graph.nodes if node.op == "Conv")
    assert len(stem.inputs) == 2, "a bias of zeros was left"
    assert not graph.metadata
    assert b"pkg.torch" not in graph.to_bytes()
    assert_valid(graph)


_WITHOUT_NORMS = {"attention", "recurrent", "vit"}
"""No BatchNormalization can stand in them: what sums has its channels on the last axis."""


def assert_slimmable(name: str, graph: Graph) -> None:
    """A step of slimming runs, and channels go by their scales; outputs are the masked ones.

    Where there can be no scales slimming says so, and channels go by gradients.
    """
    (source,) = graph.inputs
    shape = [size for size in graph.shape(source) or () if isinstance(size, int)]
    x = np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)
    context = Context(original=graph.clone(), calibration=Dataset.from_arrays({source: x}))
    slim = Slim(epochs=1, batch=16, precision="float32", layout="contiguous", augment=())
    if name in _WITHOUT_NORMS:
        with pytest.raises(RecipeError, match="run restore-batch-norm first"):
            slim.run(graph, context)
        step = RemoveChannels(ratio=0.25, importance="taylor-weight")
    else:
        RestoreBatchNorm().run(graph, context)
        slim.run(graph, context)
        assert context.notes["steps"] == 1
        assert_valid(graph)
        step = RemoveChannels(ratio=0.25, importance="batch-norm-scale", allocation="global")
    before = graph.clone()
    step.run(graph, context)
    assert cost(graph).macs < cost(before).macs
    wanted = run_model(step.reference(before, context), {source: x[:2]})
    for want, got in zip(wanted, run_model(graph, {source: x[:2]}), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4 * float(np.abs(want).max()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str) -> None:
    graph = assert_traced(ARCHITECTURES[name](), torch.randn(2, 3, 8, 8))
    assert_slimmable(name, graph)


_SMALL = {"digits-resnet", "lenet-300-100", "lenet-5", "resnet-20", "slimming-mlp"}
"""All others take longer than five seconds."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in _SMALL else pytest.mark.slow) for name in NETWORKS],
)
def test_reference_networks(name: str) -> None:
    reference = NETWORKS[name]
    module = reference.build()
    norms = sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in module.modules())
    graph = assert_traced(module, torch.randn(2, *reference.shape))
    assert [node.op for node in graph.nodes].count("BatchNormalization") == norms
    assert_slimmable(name, graph)


class Undecided(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_exports_badly_gives_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"cannot export Undecided: .*data-dependent") as raised:
        trace(Undecided(), torch.randn(2, 3))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


def test_a_graph_that_differs_from_its_module_is_refused() -> None:
    with pytest.raises(ModelError, match="differs from the module's"):
        trace(Noisy(), torch.randn(2, 3))


def test_names_and_sizes_as_asked() -> None:
    module = nn.Linear(4, 2)
    assert module.training
    x = torch.randn(2, 4)
    graph = trace(module, x, dynamic={"features": {0: "rows"}}, input_names=["features"])
    assert graph.inputs == ("features",)
    assert graph.shape("features") == ("rows", 4)
    assert module.training, "trace left the module in eval mode"
    fixed = trace(module, x, dynamic=False, output_names=["score"])
    assert fixed.shape(fixed.inputs[0]) == (2, 4)
    assert fixed.outputs == ("score",)
    with pytest.raises(ModelError, match="input_names"):
        trace(module, x, dynamic={"other": {0: "rows"}})


def test_names_that_the_exporter_uses_inside() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(10, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.table(x)
            return self.last(found).relu(), found + 1

    module, x = Words(), torch.tensor([[1, 2], [3, 4]])
    graph = trace(module, x, input_names=["linear"], output_names=["embedding", "y"])
    assert graph.inputs == ("linear",)
    assert graph.outputs == ("embedding", "y")
    assert graph.shape("y") == ("batch", 2, 4)
    assert {"table.weight", "last.weight"} <= graph.constants().keys()


FACTORY = """
import torch

def pair():
    return torch.nn.Linear(3, 2), torch.ones(1, 3)

def alone():
    module = torch.nn.Linear(3, 2)
    module.example_inputs = (torch.ones(2, 3),)
    return module

def bare():
    return torch.nn.Linear(3, 2)

def number():
    return 7

def broken():
    raise ValueError("no weights here")
"""


def test_factories(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(FACTORY)
    for name in ("pair", "alone"):
        assert set(load_model(f"{path}:{name}").constants()) == {"weight", "bias"}
    for name, text in (
        ("bare", "no example inputs"),
        ("number", r"gave a int; return \(module"),
        ("broken", "raised ValueError: no weights here"),
        ("absent", "no function 'absent'"),
    ):
        with pytest.raises(DataError, match=text):
            load_model(f"{path}:{name}")
