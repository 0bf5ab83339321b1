"""What is measured of channels equals what numpy says of the whole data set."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.coupling import couple
from graphopt.coupling.statistics import Measure
from graphopt.data import Dataset
from graphopt.errors import DataError
from graphopt.ir import Graph
from graphopt.runtime import Session
from graphopt.runtime import contributions as under_test
from graphopt.runtime.calibrating import calibrate
from tests.asserting import parse
from tests.coupling.test_removal import CHAIN

X = np.random.default_rng(0).standard_normal((70, 3, 8, 8)).astype(np.float32)


def test_moments_of_what_layers_read() -> None:
    graph = Graph.load(parse(CHAIN))
    coupling = couple(graph)
    data = Dataset.from_arrays({"x": X})
    found = calibrate(coupling, coupling.families, data, {Measure.ACTIVATIONS})
    by_tensor = {entry.tensor: entry for entry in found.activations["w"]}
    assert {entry.tensor: entry.read for entry in found.activations["w"]} == {"r": True}
    assert {entry.tensor: entry.read for entry in found.activations["v"]} == {"f": True}
    with Session.open(graph.with_outputs(["r"])) as session:
        values = session.run({"x": X})[0].astype(np.float64)
    relu = by_tensor["r"]
    np.testing.assert_allclose(relu.mean, values.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(relu.variance, values.var(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(relu.mean_abs, np.abs(values).mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(relu.zeros, (values == 0).mean(axis=(0, 2, 3)), rtol=1e-6)


LAYERS = {
    "conv": ("<float[6,4,3,3] v>", "Conv<pads=[1,1,1,1], strides=[2,1]>(r, v)"),
    "dilated": ("<float[6,4,3,3] v>", "Conv<pads=[2,0,2,0], dilations=[2,2]>(r, v)"),
    "same": ("<float[6,4,2,3] v>", 'Conv<auto_pad="SAME_LOWER", strides=[2,2]>(r, v)'),
    "groups": ("<float[6,2,3,3] v>", "Conv<group=2>(r, v)"),
    "transposed": ("<float[4,6,2,2] v>", "ConvTranspose<strides=[2,2]>(r, v)"),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_gram_of_contributions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels left out by zeroing them: the layer's change is what the Gram matrix says."""
    monkeypatch.setattr(under_test, "_MIXTURES", 4096)
    monkeypatch.setattr(under_test, "_PLACES", 64)
    declared, layer = LAYERS[kind]
    text = f"""g (float[N,3,8,8] x) => (float[N,6,?,?] y)
    <float[4,3,1,1] w> {declared} {{ c = Conv(x, w) r = Relu(c) z = {layer} y = Relu(z) }}"""
    text = text.replace("> <", ", ")
    graph = Graph.load(parse(text))
    coupling = couple(graph)
    data = Dataset.from_arrays({"x": X[:24]})
    family = next(family for family in coupling.families if family.name == "w")
    families = [family]
    (reading,) = calibrate(coupling, families, data, {Measure.READINGS}).readings["w"]
    weight = graph.constant("w")
    assert weight is not None

    def output(gone: np.ndarray) -> np.ndarray:
        changed, array = graph.with_outputs(["z"]), weight.copy()
        array[gone] = 0  # relu(0) is 0
        changed.set_constant("w", array)
        with Session.open(changed) as session:
            return session.run({"x": X[:24]})[0].astype(np.float64)

    whole = output(np.arange(0))
    relative = []
    for channel in range(family.size):
        error = ((output(family.members[0].of(channel)) - whole) ** 2).mean()
        relative.append(reading.gram[channel, channel] / error)
    np.testing.assert_allclose(relative, np.mean(relative), rtol=0.2)
    assert (reading.curvature > 0).all()


def test_a_matrix_product_over_a_flattened_map() -> None:
    text = """g (float[N,3,2,2] x) => (float[N,5] y) <float[4,3,1,1] w, float[16,5] v> {
        c = Conv(x, w) f = Flatten(c) y = MatMul(f, v) }"""
    graph = Graph.load(parse(text))
    coupling = couple(graph)
    data = Dataset.from_arrays({"x": X[:, :, :2, :2].copy()})
    (reading,) = calibrate(coupling, coupling.families, data, {Measure.READINGS}).readings["w"]
    assert reading.gram.shape == (4, 4)
    weight, wide = (np.asarray(graph.constant(name), np.float32) for name in "wv")
    maps = np.einsum("nihw,oi->nohw", X[:, :, :2, :2], weight[:, :, 0, 0]).reshape(70, 4, 4)
    curvature = np.einsum("nck,cko->c", maps**2, wide.reshape(4, 4, 5) ** 2) / 70
    np.testing.assert_allclose(reading.curvature, curvature, rtol=1e-4)


def test_too_few_inputs_are_counted() -> None:
    text = """g (float[N,3] x) => (float[N,5] y) <float[3,300] w, float[300,5] v> {
        h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"""
    coupling = couple(Graph.load(parse(text)))
    data = Dataset.from_arrays({"x": X[:7, :, 0, 0].copy()})
    with pytest.raises(DataError, match=r"7 inputs are too few .* 300 channels .* at least 19"):
        calibrate(coupling, coupling.families, data, {Measure.READINGS})


def test_activations_that_are_not_finite_are_named() -> None:
    coupling = couple(Graph.load(parse(CHAIN)))
    bad = X.copy()
    bad[3, 0] = np.inf
    with pytest.raises(DataError, match="tensor 'r' holds NaN or infinite"):
        calibrate(coupling, coupling.families, Dataset.from_arrays({"x": bad}), set(Measure))
