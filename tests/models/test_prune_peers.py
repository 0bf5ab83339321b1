"""The scoreboard of channel removal: architectures as published, files as modules, true figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graphopt.cost import cost
from graphopt.ir import Graph
from graphopt.runtime import Session, runnable_feeds
from models.architectures import ARCHITECTURES, build, traced
from models.light import LIGHT, draw_light_model
from models.prune_ours import difference, families, prune
from models.prune_peers import Row, table
from models.prune_synthetic import WIDTH, write_synthetic
from models.torch_modules import as_layers
from tests.asserting import parse


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        module = ARCHITECTURES[name].build()
    assert sum(p.numel() for p in module.parameters()) == ARCHITECTURES[name].parameters
    assert ARCHITECTURES[name].outputs(module)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_detector_is_cut_without_a_hint(tmp_path: Path) -> None:
    path, cut = traced("ssdlite", tmp_path), tmp_path / "cut.onnx"
    prune(str(path), str(cut))
    assert cost(Graph.load(cut)).macs <= 0.4 * cost(Graph.load(path)).macs
    assert difference(str(path))["difference"] <= 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_shufflenet_has_the_families_of_other_exporters_files(
    tmp_path: Path, shared_model: Callable[[str], Path]
) -> None:
    files = (traced("shufflenet-v2", tmp_path), shared_model("shufflenet_v2_x1_0.bn.onnx"))
    assert families(str(files[0])) == families(str(files[1]))


LAYERS = """g (float[N,3,6,6] x) => (float[N,5] y)
<float[8,3,3,3] w, float[8] b, float[8,6,1,1] t, float[6] s, float[6] o, float[6,5] v, float[5] c> {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    u = ConvTranspose(a, t)
    p = GlobalAveragePool(u)
    sizes = Constant<value_ints=[-1, 6]>()
    f = Reshape(p, sizes)
    n = LayerNormalization(f, s, o)
    m = MatMul(n, v)
    y = Add(m, c)
}"""


def test_a_file_becomes_layers_that_compute_the_same() -> None:
    graph = Graph.load(parse(LAYERS))
    module, names = as_layers(graph)
    layers = dict(module.named_modules())
    kinds = {name: type(layers[path]) for path, name in names.items()}
    assert kinds == {"w": nn.Conv2d, "t": nn.ConvTranspose2d, "s": nn.LayerNorm, "v": nn.Linear}
    assert not list(module.parameters(recurse=False))
    feeds = runnable_feeds(graph, 0).arrays
    with Session.open(graph) as session, torch.no_grad():
        got = module(torch.from_numpy(feeds["x"])).numpy()
        np.testing.assert_allclose(got, session.run(feeds)[0], rtol=1e-5, atol=1e-5)


def test_light_models_are_not_uniform(tmp_path: Path) -> None:
    assert len(LIGHT) == 9
    graph = Graph.load(draw_light_model("light_squeezenet.onnx", tmp_path))
    weights = [array for array in graph.constants().values() if array.dtype == np.float32]
    assert all(len(np.unique(array)) > 1 for array in weights if array.size > 1)


def test_the_synthetic_network_is_as_large_as_it_says(tmp_path: Path) -> None:
    graph = Graph.load(write_synthetic(tmp_path / "synthetic.onnx", 100))
    assert len(graph.nodes) == 100
    shapes = [graph.shape(node.outputs[0].name) for node in graph.nodes]
    channels = [shape[1] for shape in shapes if shape is not None]
    assert sum(size for size in channels if isinstance(size, int)) >= 100 * WIDTH


def test_the_table_says_what_failed() -> None:
    rows = {
        "a.onnx": {
            "graphopt": Row(0.25, (1.0, 3.0, 2.0), exit=0, difference=1e-7, families=((4, True),)),
            "torch-pruning": Row(0.26, (8.0, 8.0, 8.0)),
            "onnxsim": Row(failure="it broke"),
        }
    }
    _, line = table(rows)
    assert "0.250 0.260    -  " in line
    assert "4.0 | onnxsim: it broke" in line


def test_networks_are_the_same_every_time() -> None:
    first, second = (build("ssdlite").state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
