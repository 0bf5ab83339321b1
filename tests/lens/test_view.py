"""The loan: what is written back and when, names, ties, modes, and where gradients go."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphopt.errors import ModelError
from graphopt.ir import Graph
from graphopt.lens import lower, trainable, write_back
from tests.asserting import parse, random_inputs, run_model
from tests.lens.checking import outputs_of
from tests.strategies import networks

NETWORK = """g (float[N,3,8,8] x) => (float[N,5] y)
    <float[6,3,3,3] kernel, float[6] bias, float[6] s, float[6] b, float[6] m, float[6] var,
     float[6,5] fc, float half = {0.5}, float[1] slope>
    {
        c = Conv <pads=[1,1,1,1]> (x, kernel, bias)
        n = BatchNormalization <momentum=0.8> (c, s, b, m, var)
        p = PRelu (n, slope)
        k = Mul (p, half)
        d = Dropout (k, half)
        f = GlobalAveragePool (d)
        e = Flatten (f)
        y = MatMul (e, fc)
    }"""

TORCH_NAMES = {"kernel": "stem.0.weight", "bias": "stem.0.bias", "fc": "fc.weight"}


def network() -> Graph:
    """A small network whose initializers have names like torch's, which no attribute can have."""
    model = parse(NETWORK)
    for tensor in model.graph.initializer:
        tensor.name = TORCH_NAMES.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [TORCH_NAMES.get(name, name) for name in node.input]
    return Graph.load(model)


def batch() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_normal((4, 3, 8, 8))).float()


def test_no_training_changes_no_byte() -> None:
    graph = network()
    before, revision = graph.to_bytes(), graph.revision
    with trainable(graph) as module:
        module(batch())
    assert graph.to_bytes() == before
    assert graph.revision == revision


def test_bits_that_compare_equal_or_not_at_all_survive() -> None:
    graph = Graph.load(parse("g (float[3] x) => (float[3] y) <float[3] w> { y = Add (x, w) }"))
    odd = np.array([0x80000000, 0x7FC00001, 0x00000001], np.uint32).view(np.float32)
    graph.set_constant("w", odd)
    before = graph.to_bytes()
    with trainable(graph):
        pass
    assert graph.to_bytes() == before


def test_a_step_is_written_back_by_name() -> None:
    graph = network()
    old = graph.constants()
    with trainable(graph) as module:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.001)
        module(batch()).square().sum().backward()
        optimizer.step()
        want = module(batch()).detach().numpy()
    changed = {name for name, array in graph.constants().items() if array is not old[name]}
    assert changed == {"stem.0.weight", "stem.0.bias", "s", "b", "slope", "fc.weight"}
    (got,) = run_model(graph, {"x": batch().numpy()})
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_exception_inside_writes_nothing() -> None:
    graph = network()
    before = graph.to_bytes()

    def interrupted() -> None:
        with trainable(graph) as module, torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert graph.to_bytes() == before


def test_the_module_does_not_share_memory_with_the_graph() -> None:
    graph = network()
    module = lower(graph)
    old = graph.constants()["fc.weight"].copy()
    with torch.no_grad():
        module.get_parameter("fc_weight").zero_()
    np.testing.assert_array_equal(graph.constants()["fc.weight"], old)


def test_the_binding_names_every_weight_and_survives_a_copy() -> None:
    module = copy.deepcopy(lower(network()))
    assert module.binding["fc_weight"] == "fc.weight"
    assert set(module.binding.values()) == {
        "stem.0.weight", "stem.0.bias", "s", "b", "m", "var", "slope", "fc.weight",
    }  # fmt: skip
    assert {name for name, _ in module.named_parameters()} < set(module.binding)


def test_settings_and_lone_factors_are_not_weights() -> None:
    module = lower(network())
    assert all(p.numel() > 1 or "slope" in n for n, p in module.named_parameters())


def test_batch_norm_and_dropout_follow_the_mode() -> None:
    graph = network()
    with trainable(graph) as module:
        (norm,) = [part for part in module.modules() if isinstance(part, _BatchNorm)]
        (drop,) = [part for part in module.modules() if isinstance(part, nn.Dropout)]
        assert not module.training
        assert drop.p == 0.5
        assert norm.momentum == pytest.approx(0.2)
        first, second = module(batch()), module(batch())
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        module.train()
        assert not torch.equal(module(batch()), module(batch()))
        module.eval()
        assert not torch.equal(module(batch()), first), "running statistics did not move"
    assert not np.array_equal(graph.constants()["m"], network().constants()["m"])


def test_tied_weights_stay_one() -> None:
    text = """g (float[2,4] x) => (float[2,4] y) <float[4,4] w>
        { a = MatMul (x, w) r = Relu (a) y = Gemm <transB=1> (r, w) }"""
    graph = Graph.load(parse(text))
    with trainable(graph) as module:
        (parameter,) = module.parameters()
        module(torch.randn(2, 4)).sum().backward()
        with torch.no_grad():
            parameter.mul_(2)
    np.testing.assert_array_equal(graph.constants()["w"], parameter.detach().numpy())


def test_a_tied_scale_of_two_batch_norms_stays_one() -> None:
    text = """g (float[2,4] x) => (float[2,4] y) <float[4] s, float[4] b, float[4] m, float[4] var>
        { a = BatchNormalization (x, s, b, m, var) y = BatchNormalization (a, s, b, m, var) }"""
    graph = Graph.load(parse(text))
    with trainable(graph) as module:
        assert len(list(module.parameters())) == 2
        with torch.no_grad():
            next(module.parameters()).fill_(3)
    assert any((array == 3).all() for array in graph.constants().values())


def test_a_weight_of_another_shape_is_refused_before_anything_changes() -> None:
    graph = network()
    before = graph.to_bytes()
    module = lower(graph)
    with torch.no_grad():
        module.get_parameter("stem_0_bias").zero_()
    module.register_parameter("fc_weight", nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(ModelError, match=r"'fc.weight' .* shape \(2, 2\)"):
        write_back(module, graph)
    assert graph.to_bytes() == before


def test_a_function_of_the_model_is_seen_through() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        g (float[N,4] x) => (float[N,4] y) <float[4,4] w>
        { a = own.Doubled (x, w) y = Relu (a) }
        <domain: "own", opset_import: ["" : 17]> Doubled (x, w) => (y)
        { two = Constant <value_floats = [2.0, 2.0, 2.0, 2.0]> () p = MatMul (x, w)
          y = Mul (p, two) }"""
    model = parse(text)
    graph = Graph.load(model)
    feeds = random_inputs(model)
    before = graph.to_bytes()
    with trainable(graph) as module:
        assert set(module.binding.values()) == {"w"}
        (made,) = outputs_of(module, graph.inputs, feeds)
        np.testing.assert_allclose(made.detach(), run_model(model, feeds)[0], atol=1e-5)
    assert graph.to_bytes() == before


FAKE_QUANT = """g (float[N,4] x) => (float[N,3] y)
    <float[4,3] w, float[3] ws = {0.02,0.05,0.1}, int8[3] wz = {0,3,-5},
     float s = {0.03}, uint8 z = {128}>
    {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        v = QuantizeLinear <axis=1> (w, ws, wz)
        u = DequantizeLinear <axis=1> (v, ws, wz)
        y = MatMul (d, u)
    }"""


def test_fake_quantization_trains_and_agrees() -> None:
    model = parse(FAKE_QUANT)
    graph = Graph.load(model)
    feeds = random_inputs(model, size=64)
    with trainable(graph) as module:
        (made,) = outputs_of(module, graph.inputs, feeds)
        np.testing.assert_allclose(made.detach(), run_model(model, feeds)[0], atol=1e-5)
        (weight,) = module.parameters()
        torch.autograd.backward(made.sum())
        steps = weight.detach() / torch.tensor([0.02, 0.05, 0.1])
        low, high = torch.tensor([-128, -131, -123]), torch.tensor([127, 124, 132])
        inside = (steps > low) & (steps < high)
        assert weight.grad is not None
        assert inside.any()
        torch.testing.assert_close(weight.grad != 0, inside)


def test_channels_last_and_autocast_keep_layout_and_type() -> None:
    text = """g (float[N,8,8,8] x) => (float[N,8,8,8] y)
        <float[8,8,3,3] w, float[8] s, float[8] b, float[8] m, float[8] var, float half = {0.5}>
        { c = Conv <pads=[1,1,1,1]> (x, w) n = BatchNormalization (c, s, b, m, var) r = Relu (n)
          h = Mul (r, half) y = Add (h, c) }"""
    module = lower(Graph.load(parse(text)))
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stubs lack it
    x = torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == torch.bfloat16


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=networks())
def test_random_networks_agree_and_gradients_arrive(text: str) -> None:
    model = parse(text)
    graph = Graph.load(model)
    feeds = random_inputs(model)
    before = graph.to_bytes()
    with trainable(graph) as module:
        results = outputs_of(module, graph.inputs, feeds)
        for want, got in zip(run_model(model, feeds), results, strict=True):
            scale = float(np.max(np.abs(want), initial=0.0)) or 1.0
            np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=1e-5 * scale)
        floats = [result.sum() for result in results if result.requires_grad]
        torch.autograd.backward(floats)
        missing = [name for name, p in module.named_parameters() if p.grad is None]
        assert not missing
    assert graph.to_bytes() == before
