"""Compare a lowered model with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch

from graphopt.ir import Graph
from graphopt.lens import LoweredModule, lower
from graphopt.lens.dtypes import to_array, to_tensor
from tests.asserting import parse, random_inputs, run_model

__all__ = ["assert_lowers", "outputs_of"]


def outputs_of(
    module: torch.nn.Module, names: tuple[str, ...], feeds: Mapping[str, np.ndarray]
) -> list[torch.Tensor]:
    """What a module gives for feeds, as a list."""
    made = module(*[to_tensor(feeds[name]) for name in names])
    return list(made) if isinstance(made, tuple) else [made]


def assert_lowers(
    model: str | onnx.ModelProto,
    *,
    opset: int = 17,
    tolerance: float = 1e-5,
    feeds: Mapping[str, np.ndarray] | None = None,
) -> LoweredModule:
    """The lowered model gives what ONNX Runtime gives, to `tolerance` of the largest value.

    1e-5 is what float32 leaves after a few hundred additions in another order.
    """
    proto = parse(model, opset=opset) if isinstance(model, str) else model
    graph = Graph.load(proto)
    module = lower(graph)
    feeds = random_inputs(proto) if feeds is None else feeds
    with torch.no_grad():
        results = outputs_of(module, graph.inputs, feeds)
    for want, result in zip(run_model(proto, feeds), results, strict=True):
        got = to_array(result)
        assert got.shape == want.shape, (got.shape, want.shape)
        assert got.dtype == want.dtype, (got.dtype, want.dtype)
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(got, want)
            continue
        scale = float(np.max(np.abs(want), initial=0.0)) or 1.0
        assert np.allclose(got, want, rtol=0, atol=tolerance * scale, equal_nan=True), (
            f"off by {np.max(np.abs(np.subtract(got, want, dtype=np.float64))):.2e} of {scale:.2e}"
        )
    return module
