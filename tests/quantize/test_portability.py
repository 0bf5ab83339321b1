"""Portable weights: 16-bit sums of two products never saturate, in any order of packing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.quantize import INT8, largest, symmetric
from graphopt.quantize.portability import portable_bounds, saturating
from tests.quantize.executing import quantized
from tests.quantize.test_static import NETWORK

Codes = npt.NDArray[np.int64]


def _without_vnni(inputs: Codes, weights: Codes) -> Codes:
    """Products (row, k) x (k, column) as `vpmaddubsw` and 32-bit sums make them."""
    if inputs.shape[1] % 2:
        inputs = np.pad(inputs, ((0, 0), (0, 1)))
        weights = np.pad(weights, ((0, 1), (0, 0)))
    products = inputs[:, :, None] * weights[None]
    pairs = products[:, 0::2] + products[:, 1::2]
    return np.asarray(np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1), np.int64)


def _worst_inputs(weights: Codes) -> Codes:
    """Inputs that make each column's positive, or its negative, weights count most."""
    return np.concatenate([(weights.T > 0) * 255, (weights.T < 0) * 255])


def _drawn(seed: int, spread: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((6, 1 + seed % 11)) * rng.standard_normal((6, 1)) ** spread
    return np.asarray(drawn, np.float32)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([0, 1, 5]))
def test_portable_weights_are_the_same_everywhere(seed: int, spread: int) -> None:
    weight = _drawn(seed, spread)
    bound = np.maximum(largest(weight, 0), portable_bounds(weight, 0, INT8.high))
    codes = symmetric(bound, INT8, 0).quantize(weight)
    assert not saturating(codes, 0).any()
    rng = np.random.default_rng(seed)
    matrix = rng.permutation(codes.T.astype(np.int64), axis=0)
    for inputs in (_worst_inputs(matrix), rng.integers(0, 256, (20, len(matrix)))):
        np.testing.assert_array_equal(_without_vnni(inputs, matrix), inputs @ matrix)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9999))
def test_saturation_is_found_where_it_is(seed: int) -> None:
    """A channel that is told to saturate does so in some order, and no other does in any."""
    weight = _drawn(seed, 1)
    codes = symmetric(largest(weight, 0), INT8, 0).quantize(weight).astype(np.int64)
    told = saturating(codes, 0)
    for channel, can in zip(codes, told, strict=True):
        matrix = np.sort(channel)[:, None]  # the two largest, and the two least, side by side
        odd = (
            matrix if len(matrix) % 2 == 0 else np.concatenate([np.zeros_like(matrix[:1]), matrix])
        )
        orders = [matrix, odd, matrix[::-1]]
        seen = any(
            (_without_vnni(_worst_inputs(order), order) != _worst_inputs(order) @ order).any()
            for order in orders
        )
        assert seen == can


def test_only_what_could_saturate_is_coarser() -> None:
    weight = np.array([[1, 0.001, -0.9, 0.002], [1, 0.9, 0.1, 0.1]], np.float32)
    bound = np.maximum(largest(weight, 0), portable_bounds(weight, 0, INT8.high))
    assert 1 <= bound[0] < 1.01
    assert bound[1] > 1.8


def test_the_pass_promises_it() -> None:
    for portable in (False, True):
        _, result = quantized(NETWORK, portable=portable)
        stored = {n: a for n, a in result.constants().items() if a.dtype == np.int8 and a.ndim > 1}
        found = sum(int(saturating(array, 0).sum()) for array in stored.values())
        assert (found == 0) == portable
