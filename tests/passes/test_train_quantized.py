"""train-quantized: opening and closing changes nothing, training brings back what bits took."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from graphopt import train
from graphopt.data import Dataset
from graphopt.errors import ModelError, RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.quantize.narrowing import (
    narrow_activations,
    rounded_tensors,
    widen_activations,
)
from graphopt.quantize.observed import Observed
from graphopt.quantize.opening import close_weights, gains_of, open_weights
from graphopt.quantize.portability import saturating
from graphopt.quantize.stored_layers import find_stored_layers
from graphopt.runtime import Session
from graphopt.train import StepSizes
from passes.prune_weights import PruneWeights
from passes.quantize_static import QuantizeStatic
from passes.quantize_weights import QuantizeWeights
from passes.train_quantized import TrainQuantized
from tests.asserting import assert_valid, parse, run_model
from tests.quantize.executing import decibels, executed, run_optimized

NETWORK = """net (float[N,4,8,8] x) => (float[N,10] y)
<float[16,4,3,3] w, float[16] b, float[16,16,3,3] v, float[16] c, float[16,16,3,3] u, float[16] e,
 float[10,16] g, float[10] d> {
    p = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    q = Relu(p)
    r = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(q, v, c)
    s = Add(r, q)
    t = Relu(s)
    k = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(t, u, e)
    m = Relu(k)
    a = GlobalAveragePool(m)
    f = Flatten(a)
    y = Gemm<transB=1>(f, g, d)
}"""


def network() -> Graph:
    graph = Graph.load(parse(NETWORK, opset=21))
    for name in ("w", "v", "u", "g"):
        graph.set_constant(name, graph.constants()[name].astype(np.float32) * np.float32(0.15))
    return graph


def data(count: int = 128) -> Dataset:
    x = np.random.default_rng(3).standard_normal((count, 4, 8, 8)).astype(np.float32)
    return Dataset.from_arrays({"x": x})


def quantized(original: Graph) -> Graph:
    graph = original.clone()
    context = Context(original=original, calibration=data())
    QuantizeStatic(pays=False, least_db=None).run(graph, context)
    return graph


def outputs(graph: Graph) -> np.ndarray:
    (found,) = run_model(graph, next(data(64).batches(64)))
    return np.asarray(found)


def test_opening_and_closing_changes_nothing() -> None:
    before = quantized(network())
    graph = before.clone()
    opened = open_weights(graph, 8)
    assert len(opened) == 4
    np.testing.assert_allclose(outputs(graph), outputs(before), atol=1e-5)
    close_weights(graph, opened)
    assert_valid(graph)
    assert [node.op for node in graph.nodes] == [node.op for node in before.nodes]
    np.testing.assert_array_equal(outputs(graph), outputs(before))


def test_pruned_weights_stay_pruned() -> None:
    original = network()
    graph = original.clone()
    PruneWeights(sparsity=0.8, allocation="uniform").run(graph, Context(original=original))
    context = Context(original=original, calibration=data())
    QuantizeStatic(pays=False, least_db=None).run(graph, context)
    TrainQuantized(epochs=1, batch=16, precision="float32", layout="contiguous").run(graph, context)
    codes = [array for array in graph.constants().values() if array.dtype == np.int8 and array.ndim]
    assert len([array for array in codes if array.ndim > 1]) == 4
    assert all((array == 0).mean() >= 0.8 - 1e-3 for array in codes if array.ndim > 1)


TIED = """net (float[N,8,8,8] x) => (float[N,8,8,8] y)
<float[8,8,3,3] w, float[8] b, float[8,8,3,3] v, float[8] c, float[8] d> {
    p = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
    q = Relu(p)
    r = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(q, v, c)
    s = Relu(r)
    y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(s, v, d)
}"""


def test_layers_that_stay_closed_run_on_integers_after_training(tmp_path: Path) -> None:
    """Their weights do not change, but the steps of what they read do."""
    original = Graph.load(parse(TIED, opset=21))
    for name in ("w", "v"):
        small = original.constants()[name].astype(np.float32) * np.float32(0.15)
        original.set_constant(name, small)
    x = np.random.default_rng(3).standard_normal((16, 8, 8, 8)).astype(np.float32)
    graph = original.clone()
    context = Context(original=original, calibration=Dataset.from_arrays({"x": x}))
    QuantizeStatic(pays=False, least_db=None, calibrator="minmax").run(graph, context)
    before = executed(graph, tmp_path)
    opened = open_weights(graph, 8)
    assert len(opened) == 1
    for scale in ("x_scale", "q_scale", "s_scale"):
        step = graph.constants()[scale].astype(np.float32)
        graph.set_constant(scale, np.asarray(step * np.float32(1.1)))
    close_weights(graph, opened)
    assert_valid(graph)
    assert executed(graph, tmp_path) == before
    (wanted,), (plain,) = run_model(original, {"x": x}), run_model(graph, {"x": x})
    (found,) = run_optimized(graph, {"x": x})
    assert decibels(wanted, plain) > 35
    assert decibels(wanted, found) > 35


def test_blocks_of_a_weight_become_one_step_for_each_output() -> None:
    body = "a = MatMul(x, w)\nb = MatMul(a, v)\ny = MatMul(b, u)"
    weights = "float[64,64] w, float[64,64] v, float[64,64] u"
    text = f"net (float[N,64] x) => (float[N,64] y) <{weights}> {{ {body} }}"
    original = Graph.load(parse(text, opset=21))
    graph = original.clone()
    QuantizeWeights(bits=4, block=32).run(graph, Context(original=original))
    before = run_model(graph, feeds := {"x": np.eye(8, 64, dtype=np.float32)})[0]
    opened = open_weights(graph, 4)
    assert [graph.constants()[entry.scale].shape for entry in opened] == [(64,)] * 3
    close_weights(graph, opened)
    assert_valid(graph)
    after = run_model(graph, feeds)[0]
    assert np.square(after - before).mean() < 0.05 * np.square(before).mean()


def test_four_bits_but_for_the_ends() -> None:
    graph = quantized(network())
    opened = open_weights(graph, 4)
    values = {
        name: run_model(graph.with_outputs([name]), next(data(64).batches(64)))[0]
        for name in ("q_f", "r_f", "t_f", "m_f")
    }
    seen = {name: Observed.of(array) for name, array in values.items()}
    changed = narrow_activations(graph, 4, seen)
    # A sum reads q as well, and r only a sum, m only a mean: they keep 8 bits there.
    assert changed == ["q_scale_narrow", "t_scale"]
    gains = gains_of(graph, opened)
    assert gains["q_scale_narrow"] == pytest.approx(1 / np.sqrt(16 * 8 * 8 * 15))
    assert gains["q_scale"] == pytest.approx(1 / np.sqrt(16 * 8 * 8 * 255))
    close_weights(graph, opened)
    assert_valid(graph)
    kinds = {name: array.dtype.name for name, array in graph.constants().items() if "_q" in name}
    assert sorted(kinds.values()) == ["int32"] * 4 + ["int4"] * 2 + ["int8"] * 2
    for zero, kind in (("q_zero", "uint8"), ("q_scale_narrow_zero", "uint4"), ("t_zero", "uint4")):
        assert graph.constants()[zero].dtype.name == kind
        assert int(graph.constants()[zero]) == 0, "the Relu that was absorbed is still there"
    narrow = outputs(graph)
    widen_activations(graph, changed)
    assert_valid(graph)
    np.testing.assert_allclose(outputs(graph), narrow, atol=1e-5)
    with Session.open(graph) as session:  # with ONNX Runtime's optimizer
        (found,) = session.run(next(data(64).batches(64)))
    wanted = outputs(network())
    assert np.square(found - wanted).mean() < 0.1 * wanted.var()


WIDE = """net (float[N,4,96,96] x) => (float[N,4,96,96] y)
<float[4,4,1,1] w, float[4,4,1,1] v, float[4,4,1,1] u> {
    a = Conv(x, w)
    b = Relu(a)
    c = Conv(b, v)
    d = Relu(c)
    y = Conv(d, u)
}"""


def test_setting_up_holds_no_more_for_more_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Graph.load(parse(WIDE, opset=21))
    x = np.random.default_rng(3).standard_normal((64, 4, 96, 96)).astype(np.float32)
    graph = original.clone()
    QuantizeStatic(calibrator="minmax", pays=False, least_db=None).run(
        graph, Context(original=original, calibration=Dataset.from_arrays({"x": x[:8]}))
    )

    def stop(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(train, "distill", stop)
    peaks = []
    for count in (16, 64):
        context = Context(original=original, calibration=Dataset.from_arrays({"x": x[:count]}))
        tracemalloc.start()
        with pytest.raises(InterruptedError):
            TrainQuantized(activation_bits=4).run(graph, context)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def signed(graph: Graph) -> Graph:
    """The same network with activations in signed integers, as others store them."""
    made = graph.clone()
    for name, array in graph.constants().items():
        if name.endswith("_zero") and array.dtype == np.uint8:
            shifted = array.astype(np.int32) - 128
            made.set_constant(name, np.asarray(shifted.astype(np.int8)))
    made.reshape_notice()
    assert_valid(made)
    return made


def test_signed_activations_get_the_same_steps() -> None:
    before = quantized(network())
    x = next(data(64).batches(64))
    found = []
    for graph in (before.clone(), signed(before)):
        np.testing.assert_allclose(outputs(graph), outputs(before), atol=1e-5)
        names = [name for name in rounded_tensors(graph) if name != "x"]
        values = run_model(graph.with_outputs(names), x)
        seen = {n: Observed.of(array) for n, array in zip(names, values, strict=True)}
        changed = narrow_activations(graph, 4, seen)
        assert_valid(graph)
        found.append({name: float(graph.constants()[name]) for name in changed})
        widen_activations(graph, changed)
        assert_valid(graph)
    assert found[0] == found[1]


@pytest.mark.parametrize("faded", [0.0, 1e-9])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_channel_without_weights_keeps_its_bias(bits: int, faded: float) -> None:
    original = network()
    weight, bias = (original.constants()[n].astype(np.float32).copy() for n in ("v", "c"))
    weight[3] *= faded
    bias[3] = 5.0
    original.set_constant("v", weight)
    original.set_constant("c", bias)
    graph = quantized(original)
    opened = open_weights(graph, bits)
    before = outputs(graph)
    close_weights(graph, opened)
    assert_valid(graph)
    assert decibels(before, outputs(graph)) > 45


def test_what_is_portable_stays_so() -> None:
    original = network()
    graph = original.clone()
    context = Context(original=original, calibration=data())
    QuantizeStatic(pays=False, least_db=None, portable=True).run(graph, context)
    opened = open_weights(graph, 8)
    assert all(entry.portable for entry in opened)
    assert not any(entry.portable for entry in open_weights(quantized(original), 8))
    for entry in opened:  # as if training had made all steps finer
        step = graph.constants()[entry.scale].astype(np.float32)
        graph.set_constant(entry.scale, np.asarray(step * np.float32(0.6)))
    close_weights(graph, opened)
    layers = find_stored_layers(graph)
    assert len(layers) == 4
    for layer in layers:
        codes = graph.constants()[layer.weight.codes]
        assert not saturating(codes, layer.weight.grid.axis or 0).any()
    assert decibels(outputs(original), outputs(graph)) > 30


def test_weights_with_a_zero_point_use_all_codes() -> None:
    before = quantized(network())
    (name,) = [n for n in before.constants() if n.startswith("v_q")]
    zero = next(n for n in before.constants() if n.startswith("v_zero"))
    shape = before.constants()[zero].shape
    before.set_constant(zero, np.full(shape, -20, np.int8))
    codes = before.constants()[name].astype(np.int32) - 20
    before.set_constant(name, np.clip(codes, -128, 127).astype(np.int8))
    graph = before.clone()
    close_weights(graph, open_weights(graph, 8))
    np.testing.assert_array_equal(outputs(graph), outputs(before))


def test_training_brings_back_what_four_bits_took() -> None:
    original = network()
    wanted = outputs(original)
    errors = []
    for epochs, rate in ((1.0, 1e-12), (15.0, 0.005)):
        graph = quantized(original)
        context = Context(original=original, calibration=data(), device="cpu")
        TrainQuantized(
            weight_bits=4, activation_bits=4, epochs=epochs, batch=32, rate=rate,
            loss="mse", augment=(), holdout=0, precision="float32", layout="contiguous",
        ).run(graph, context)  # fmt: skip
        assert_valid(graph)
        errors.append(float(np.square(outputs(graph) - wanted).mean()))
    assert errors[1] < 0.6 * errors[0]


def test_steps_are_learned_and_stay_positive() -> None:
    torch = pytest.importorskip("torch")
    from graphopt.lens import lower
    from graphopt.train import Training

    graph = quantized(network())
    opened = open_weights(graph, 8)
    gains = gains_of(graph, opened)
    module, hook = lower(graph), StepSizes(gains)
    training = Training(module)
    hook.start(training)
    scales = {name: training.weights[name] for name in gains}
    assert len(scales) == len(gains) > 8
    x = torch.from_numpy(next(data(8).batches(8))["x"])
    module(x).square().mean().backward()
    plain = {n: scale.grad.clone() for n, scale in scales.items() if scale.grad is not None}
    assert len(plain) == len(scales)
    assert all(float(grad.abs().max()) > 0 for grad in plain.values())
    hook.after_backward(training, 0.0)
    for name, scale in scales.items():
        torch.testing.assert_close(scale.grad, plain[name] * gains[name])
        scale.data.fill_(-1.0)
    hook.after_step(training, 0.0)
    assert all(float(scale.detach().min()) > 0 for scale in scales.values())


def test_what_is_not_quantized_says_what_comes_before() -> None:
    original = network()
    context = Context(original=original, calibration=data(), device="cpu")
    with pytest.raises(ModelError, match="no layer has a stored weight; quantize-static comes"):
        TrainQuantized().run(original.clone(), context)
    with pytest.raises(RecipeError, match="weight_bits is 4 or 8, got 2"):
        TrainQuantized(weight_bits=2)  # type: ignore[arg-type]
