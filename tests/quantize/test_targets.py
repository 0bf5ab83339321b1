"""What quantized layers are compared with: what the original's gave before its activation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.quantize.references import noted_references
from graphopt.quantize.stored_layers import StoredLayer, find_stored_layers
from graphopt.quantize.targets import Target, find_target
from passes.adaround import AdaRound
from passes.correct_bias import CorrectBias
from passes.fold_affine import FoldAffine
from passes.fold_shortcut import FoldShortcut
from passes.fuse_relus import FuseRelus
from passes.merge_chains import MergeChains
from passes.quantize_static import QuantizeStatic
from passes.remove_identities import RemoveIdentities
from tests.asserting import parse, run_model

NETWORK = """net (float[N,8,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] q)
<float[8,8,3,3] w, float[8] b, float[8,8,3,3] v, float[8] c, float zero = {{0.0}},
 float six = {{6.0}}, float two = {{2.0}}> {{
    p = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    {clamp}
    y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(q, v, c)
}}"""

CLAMPS = {
    "q = Relu(p)": ("p", math.inf),
    "q = Max(p, zero)": ("p", math.inf),
    "m = Max(zero, p) q = Min(m, six)": ("p", 6.0),
    "m = Relu(p) q = Min(m, six)": ("p", 6.0),
    "m = Relu(p) q = Clip(m, zero, six)": ("p", 6.0),
    "m = Relu(p) d = Dropout(m) q = Identity(d)": ("p", math.inf),
    "s = Mul(p, two) m = Relu(s) q = Identity(m)": ("s", math.inf),
}


def network(clamp: str) -> Graph:
    return Graph.load(parse(NETWORK.format(clamp=clamp)))


def data(count: int = 64) -> Dataset:
    rng = np.random.default_rng(3)
    return Dataset.from_arrays({"x": rng.standard_normal((count, 8, 8, 8)).astype(np.float32)})


def quantized(original: Graph) -> Graph:
    """What is written in pieces is fused first, as recipes do it."""
    graph, context = original.clone(), Context(original=original, calibration=data())
    for step in (RemoveIdentities(), FuseRelus(), MergeChains(), FoldAffine()):
        step.run(graph, context)
    graph.prune()
    QuantizeStatic(pays=False, least_db=None).run(graph, context)
    return graph


def target_of(graph: Graph, original: Graph, layer: StoredLayer) -> Target | str:
    return find_target(graph, original, noted_references(graph), layer)


@pytest.mark.parametrize("clamp", CLAMPS)
def test_a_clamp_is_stepped_over_however_it_is_written(clamp: str) -> None:
    original = network(clamp)
    graph = quantized(original)
    layer = find_stored_layers(graph)[0]
    found = target_of(graph, original, layer)
    assert isinstance(found, Target)
    tensor, high = CLAMPS[clamp]
    assert (found.tensor, found.low, found.high) == (tensor, 0.0, high)
    feeds = next(data().batches(64))
    CorrectBias().run(graph, Context(original=original, calibration=data()))
    (made,) = run_model(graph.with_outputs([layer.layer.output]), feeds)
    (wanted,) = run_model(original.with_outputs([tensor]), feeds)
    assert np.abs((made - wanted).mean((0, 2, 3))).max() < 1e-3 * wanted.std()


def test_rounding_does_not_fit_what_is_rectified() -> None:
    original = network("m = Max(p, zero) q = Min(m, six)")
    graph, context = quantized(original), Context(original=original, calibration=data())
    layer = find_stored_layers(graph)[0].layer.output
    AdaRound(bits=8, steps=0).run(graph, context)
    errors = context.notes["errors"]
    assert isinstance(errors, dict)
    entry = errors[layer]
    assert isinstance(entry, dict)
    assert float(str(entry["nearest"])) < 1e-3, "before the clamp both are alike"


@pytest.mark.parametrize(
    ("clamp", "why"),
    [
        ("q = Sigmoid(p)", "does more than clamp"),
        ("m = Relu(p) q = Mul(m, two)", "does more than clamp"),
        ("m = Relu(p) q = Add(m, x)", "does more than clamp"),
        ("q = Max(p, x)", "the clamp behind 'q' is computed"),
        ("q = Relu(x)", "the original does not compute 'x'"),
    ],
)
def test_what_is_more_than_a_clamp_is_no_target(clamp: str, why: str) -> None:
    graph = quantized(network("q = Relu(p)"))
    found = target_of(graph, network(clamp), find_stored_layers(graph)[0])
    assert isinstance(found, str)
    assert why in found


def test_a_shortcut_made_a_convolution_has_a_target() -> None:
    text = """net (float[N,4,8,8] x) => (float[N,8,4,4] y) <float[4,4,1,1] u, float[8,4,3,3] w,
     float[8,8,1,1] v, int64[2] b = {0,0}, int64[2] e = {8,8}, int64[2] a = {2,3},
     int64[2] k = {2,2}, int64[8] pads = {0,2,0,0,0,2,0,0}> {
        o = Conv(x, u)
        r = Relu(o)
        c = Conv<pads=[1,1,1,1], strides=[2,2]>(r, w)
        s = Slice(r, b, e, a, k)
        p = Pad(s, pads)
        t = Add(c, p)
        y = Conv(t, v)
    }"""
    original = Graph.load(parse(text))
    graph = original.clone()
    x = np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32)
    context = Context(original=original, calibration=Dataset.from_arrays({"x": x}))
    FoldShortcut().run(graph, context)
    QuantizeStatic(pays=False, least_db=None).run(graph, context)
    found = [target_of(graph, original, layer) for layer in find_stored_layers(graph)]
    tensors = [entry.tensor for entry in found if isinstance(entry, Target)]
    assert sorted(tensors) == ["c", "o", "p", "y"]
