"""Grids: equal to what ONNX Runtime computes, safe at their edges."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.quantize import (
    BIAS,
    INT4,
    INT8,
    INT8_FULL,
    UINT4,
    UINT8,
    Format,
    Grid,
    asymmetric,
    largest,
    symmetric,
)
from graphopt.runtime import Session


def _in_onnxruntime(x: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.float32]:
    """What QuantizeLinear and DequantizeLinear make of a tensor."""
    axis = 0 if grid.axis is None else grid.axis
    ends = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, list(x.shape)) for n in ("x", "y")
    ]
    graph = helper.make_graph(
        [
            helper.make_node(op, [a, "scale", "zero"], [b], axis=axis, block_size=grid.block)
            for op, a, b in (("QuantizeLinear", "x", "q"), ("DequantizeLinear", "q", "y"))
        ],
        "grid", ends[:1], ends[1:],
        [numpy_helper.from_array(grid.scale, "scale"), numpy_helper.from_array(grid.zero, "zero")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with Session.open(model, optimize="none") as session:
        return session.run({"x": x})[0].astype(np.float32)


def _drawn(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(shape) * rng.choice([1e-3, 1.0, 50.0])
    return np.asarray(drawn, np.float32)


_FORMATS = st.sampled_from([UINT8, INT8_FULL])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), _FORMATS, st.floats(-50, 50), st.floats(-50, 50))
def test_asymmetric_rounds_as_onnxruntime(seed: int, kind: Format, a: float, b: float) -> None:
    x = _drawn(seed, (3, 40))
    grid = asymmetric(min(a, b), max(a, b), kind)
    np.testing.assert_array_equal(grid.round(x), _in_onnxruntime(x, grid))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([None, 0, 1, 2]))
def test_symmetric_rounds_as_onnxruntime(seed: int, axis: int | None) -> None:
    x = _drawn(seed, (4, 5, 6))
    grid = symmetric(largest(x, axis), INT8, axis)
    np.testing.assert_array_equal(grid.round(x), _in_onnxruntime(x, grid))
    assert np.abs(grid.round(x) - x).max() <= grid.scale.max() * 0.5001


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([INT4, UINT4]), st.sampled_from([0, 1]))
def test_blocks_round_as_onnxruntime(seed: int, kind: Format, axis: int) -> None:
    x = _drawn(seed, (40, 37))
    grid = symmetric(largest(x, axis, 16), kind, axis, 16)
    assert grid.scale.shape[axis] == 3
    np.testing.assert_array_equal(grid.round(x), _in_onnxruntime(x, grid))


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), _FORMATS)
def test_zero_and_the_ends_are_on_the_grid(a: float, b: float, kind: Format) -> None:
    grid = asymmetric(min(a, b), max(a, b), kind)
    assert grid.round(np.zeros((), np.float32)) == 0
    low, high = grid.limits()
    step = grid.scale * 1.01
    assert low <= min(a, b, 0) + step
    assert high >= max(a, b, 0) - step


def test_rounding_twice_changes_nothing() -> None:
    x = _drawn(1, (8, 9))
    grid = symmetric(largest(x, 0), INT8, 0)
    codes = grid.quantize(x)
    np.testing.assert_array_equal(grid.quantize(grid.dequantize(codes)), codes)


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 1.0], [1e-30, 1.0], [1e-38, 0.0]])
def test_dead_channels_get_a_step_that_is_safe(values: list[float]) -> None:
    grid = symmetric(values, INT8, 0)
    assert (grid.scale > 0).all()
    assert np.isfinite(np.float32(1) / grid.scale).all()
    assert (grid.scale * grid.scale > 0).all()
    assert not grid.round(np.zeros((2, 3), np.float32)).any()


def test_biases_keep_32_bits() -> None:
    grid = Grid(np.array([2**-20, 1e-4], np.float32), np.zeros(2, np.int32), BIAS, 0)
    bias = np.array([1234.5678912345, -5.0])
    np.testing.assert_array_equal(grid.quantize(bias), [round(1234.5678912345 * 2**20), -50000])
    np.testing.assert_allclose(grid.dequantize(grid.quantize(bias)), bias, rtol=1e-6)


def test_narrowed_formats() -> None:
    assert (INT8.narrowed(7).low, INT8.narrowed(7).high) == (-63, 63)
    assert (UINT8.narrowed(7).low, UINT8.narrowed(7).high) == (0, 127)
    assert symmetric(63.0, INT8.narrowed(7)).scale == 1
    assert INT4.dtype == np.dtype(ml_dtypes.int4)
