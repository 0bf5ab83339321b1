"""Gradients of channels are what finite differences and the divergence say they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest

from graphopt.coupling import Coupling, couple
from graphopt.coupling.importance import importance
from graphopt.coupling.statistics import Measure, Sensitivity
from graphopt.data import Dataset
from graphopt.errors import DataError, ModelError
from graphopt.ir import Graph
from graphopt.refit.gradients import sense
from tests.asserting import parse, run_model

Values = npt.NDArray[np.float64]

TEXT = """two (float[N,3,4,4] x) => (float[N,5] y)
<float[4,3,3,3] w, float[4] b, float[4] s, float[4] t, float[4] mean, float[4] var,
 float[5,4,4,4] v> {
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    n = BatchNormalization(a, s, t, mean, var)
    r = Relu(n)
    c = Conv<kernel_shape=[4,4]>(r, v)
    y = Flatten(c)
}"""
RNG = np.random.default_rng(3)
X = RNG.standard_normal((6, 3, 4, 4)).astype(np.float32)
LABELS = np.array([0, 4, 2, 2, 1, 3])
PLACES = 16
STEP = 1e-2


def graph_of(text: str = TEXT) -> Graph:
    graph = Graph.load(parse(text))
    graph.set_constant("v", (0.1 * graph.constants()["v"].astype(np.float64)).astype(np.float32))
    return graph


def losses(graph: Graph, x: npt.NDArray[np.float32] = X) -> Values:
    """The cross-entropy of each input."""
    scores = run_model(graph, {"x": x})[0].astype(np.float64)
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return np.asarray(-logs[np.arange(len(x)), LABELS])


def slope(scale: Callable[[Graph, float], None]) -> Values:
    """The change of each input's loss with what `scale` multiplies by 1 + step."""
    found = []
    for step in (STEP, -STEP):
        graph = graph_of()
        scale(graph, 1 + step)
        found.append(losses(graph))
    return np.asarray((found[0] - found[1]) / (2 * STEP))


def times(graph: Graph, places: Mapping[str, tuple[slice | int, ...]], factor: float) -> None:
    for name, place in places.items():
        array = graph.constants()[name].astype(np.float64)
        array[place] *= factor
        graph.set_constant(name, array.astype(np.float32))


def measured(
    measure: Measure, graph: Graph, x: npt.NDArray[np.float32], labels: object = None
) -> tuple[Coupling, Sensitivity]:
    coupling = couple(graph)
    data = Dataset.from_arrays({"x": x}, labels)  # type: ignore[arg-type]
    found = sense(coupling, coupling.families, data, measure, seed=1)
    return coupling, found.sensitivities["w"]


def test_activations_against_finite_differences() -> None:
    _, found = measured(Measure.ACTIVATION_GRADIENTS, graph_of(), X, LABELS)
    (scores,) = found.activations
    for channel in range(4):
        # a gate on what the second layer reads is a factor of its weights
        gate: dict[str, tuple[slice | int, ...]] = {"v": (slice(None), channel)}
        slopes = slope(lambda graph, factor, gate=gate: times(graph, gate, factor))  # type: ignore[misc]
        np.testing.assert_allclose(scores[channel], np.abs(slopes).mean() / PLACES, rtol=1e-2)


@pytest.mark.parametrize("form", ["weights", "gates"])
def test_weights_against_finite_differences(form: str) -> None:
    _, found = measured(Measure.WEIGHT_GRADIENTS, graph_of(), X, LABELS)
    scores = found.weights if form == "weights" else found.gates
    assert scores is not None
    names = ("w", "b", "s", "t") if form == "weights" else ("s", "t")
    for channel in range(4):
        coupled: dict[str, tuple[slice | int, ...]] = dict.fromkeys(names, (channel,))
        if form == "weights":
            coupled["v"] = (slice(None), channel)
        slopes = np.zeros(len(X))
        for name, place in coupled.items():
            slopes += slope(lambda graph, factor, n=name, p=place: times(graph, {n: p}, factor))  # type: ignore[misc]
        np.testing.assert_allclose(scores[channel], (slopes**2).mean(), rtol=2e-2)


def test_without_labels_it_is_the_curvature_of_the_divergence() -> None:
    """Drawn labels: the mean square is twice the divergence, to second order."""
    graph = graph_of()
    many = np.repeat(X[:2], 600, axis=0)
    _, found = measured(Measure.WEIGHT_GRADIENTS, graph, many)
    assert found.gates is not None

    def probabilities(graph: Graph) -> Values:
        scores = np.exp(run_model(graph, {"x": X[:2]})[0].astype(np.float64))
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))

    before = probabilities(graph)
    for channel in range(4):
        other = graph_of()
        times(other, {"s": (channel,), "t": (channel,)}, 1 + 5e-2)
        divergence = (before * np.log(before / probabilities(other))).sum(axis=1).mean()
        np.testing.assert_allclose(found.gates[channel], 2 * divergence / 5e-2**2, rtol=0.2)


def test_probabilities_are_taken_as_such() -> None:
    plain = graph_of()
    text = TEXT.replace("y = Flatten(c)", "f = Flatten(c) y = Softmax<axis=1>(f)")
    soft = graph_of(text)
    _, wanted = measured(Measure.WEIGHT_GRADIENTS, plain, X, LABELS)
    _, found = measured(Measure.WEIGHT_GRADIENTS, soft, X, LABELS)
    assert wanted.weights is not None
    assert found.weights is not None
    np.testing.assert_allclose(found.weights, wanted.weights, rtol=1e-4)


def test_a_channel_that_nothing_depends_on_scores_nothing() -> None:
    """Also where outputs are no classes."""
    text = TEXT.replace("float[N,5] y", "float[N,5,1,1] z, float[N,4,4,4] y").replace(
        "y = Flatten(c)", "z = Identity(c) y = Tanh(x)"
    )
    text = text.replace("float[N,4,4,4] y", "float[N,3,4,4] y")
    graph = graph_of(text)
    array = graph.constants()["v"].copy()
    array[:, 2] = 0
    graph.set_constant("v", array)
    coupling, found = measured(Measure.ACTIVATION_GRADIENTS, graph, X)
    (scores,) = found.activations
    assert scores[2] == 0
    assert (np.delete(scores, 2) > 0).all()
    (family,) = coupling.families
    statistics = sense(
        coupling, [family], Dataset.from_arrays({"x": X}), Measure.ACTIVATION_GRADIENTS, seed=1
    )
    normal = importance("taylor", family, graph, statistics)
    assert normal is not None
    np.testing.assert_allclose(np.linalg.norm(normal), 1)
    np.testing.assert_allclose(normal, scores / np.linalg.norm(scores))


def test_images_of_no_classes() -> None:
    text = """filters (float[N,3,4,4] x) => (float[N,2,4,4] y)
    <float[4,3,1,1] w, float[2,4,1,1] v> { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }"""
    graph = Graph.load(parse(text))
    times(graph, {"v": (slice(None), 1)}, 1e-3)
    for measure in (Measure.ACTIVATION_GRADIENTS, Measure.WEIGHT_GRADIENTS):
        _, found = measured(measure, graph, X)
        scores = found.weights if found.weights is not None else found.activations[0]
        assert scores.argmin() == 1
        assert (scores > 0).all()


def test_bad_labels_and_weights() -> None:
    with pytest.raises(DataError, match="labels must be 0 to 4, arrays has 5"):
        measured(Measure.WEIGHT_GRADIENTS, graph_of(), X, np.array([0, 1, 2, 3, 4, 5]))
    broken = graph_of()
    broken.set_constant("b", np.full(4, np.nan, np.float32))
    with pytest.raises(DataError, match="is not finite"):
        measured(Measure.WEIGHT_GRADIENTS, broken, X, LABELS)
    text = TEXT.replace("float[N,5] y", "int64[N,1] y").replace(
        "y = Flatten(c)", "f = Flatten(c) y = ArgMax<axis=1>(f)"
    )
    with pytest.raises(ModelError, match="no output is a float tensor"):
        measured(Measure.WEIGHT_GRADIENTS, graph_of(text), X)
