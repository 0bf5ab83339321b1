"""Statistics of tensors: merging parts equals seeing the whole; the five calibrators."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphopt.quantize import UINT8, asymmetric
from graphopt.quantize.calibrators import CALIBRATORS
from graphopt.quantize.observed import BINS, Observed

_VALUES = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from(
    [0.0, 1.0, -1.0, 2.0**-120, 2.0**40]
)
_BATCH = arrays.arrays(
    np.float32, st.tuples(st.integers(0, 4), st.integers(0, 5)), elements=_VALUES
)


@settings(max_examples=200, deadline=None)
@given(_BATCH, _BATCH, _BATCH)
def test_merging_parts_equals_seeing_the_whole(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], c: npt.NDArray[np.float32]
) -> None:
    width = 5
    parts = [np.resize(x, (len(x), width)) if x.size else x[:0].reshape(0, width)
             for x in (a, b, c)]  # fmt: skip
    first, second, third = (Observed.of(part) for part in parts)
    whole = Observed.of(np.concatenate(parts))
    for merged in (first.merge(second).merge(third), first.merge(second.merge(third))):
        np.testing.assert_array_equal(merged.counts, whole.counts)
        assert (merged.exponent, merged.low, merged.high) == (whole.exponent, whole.low, whole.high)
        assert merged.inputs == whole.inputs
        np.testing.assert_allclose(merged.faded, whole.faded, rtol=1e-4, atol=1e-30)


def _normal(seed: int = 0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((16, 5000)).astype(np.float32)


def test_histogram_counts_what_numpy_counts() -> None:
    x = _normal()
    seen = Observed.of(x)
    bins = np.trunc(x / seen.width).astype(int) + BINS // 2
    np.testing.assert_array_equal(seen.counts, np.bincount(bins.reshape(-1), minlength=BINS))
    assert seen.quantile(0.25) == pytest.approx(np.quantile(x, 0.25), abs=2 * seen.width)
    assert seen.quantile(0.0) == x.min()
    assert seen.quantile(1.0) == x.max()


def test_moving_average_is_that_of_the_inputs() -> None:
    x = _normal()
    low = x[0].min()
    weight = 1.0
    for row in x[1:]:  # debiased: sums of powers of 0.99
        low, weight = 0.99 * low + row.min(), 0.99 * weight + 1
    assert Observed.of(x).averages()[0] == pytest.approx(low / weight, rel=1e-5)


def _loss(x: npt.NDArray[np.float32], low: float, high: float) -> float:
    return float(((asymmetric(low, high).round(x) - x) ** 2).mean())


@pytest.mark.parametrize("name", sorted(CALIBRATORS))
@pytest.mark.parametrize("kind", ["normal", "relu", "negative", "heavy"])
def test_a_range_lies_within_what_was_seen(name: str, kind: str) -> None:
    x = {
        "normal": _normal(),
        "relu": np.maximum(_normal(), 0),
        "negative": -np.abs(_normal()),
        "heavy": _normal() ** 3,
    }[kind]
    low, high = CALIBRATORS[name](Observed.of(x), UINT8)
    assert min(x.min(), 0) <= low < high <= max(x.max(), 0)
    assert high - low > 0.3 * (np.quantile(x, 0.99) - np.quantile(x, 0.01))


@pytest.mark.parametrize("power", [1, 3, 5])
def test_mse_loses_least(power: int) -> None:
    x = _normal() ** power
    seen = Observed.of(x)
    best = _loss(x, *CALIBRATORS["mse"](seen, UINT8))
    for name in CALIBRATORS:
        assert best <= _loss(x, *CALIBRATORS[name](seen, UINT8)) * 1.02, name
    by_hand = min(_loss(x, x.min() * a, x.max() * a) for a in np.linspace(0.05, 1, 200))
    assert best <= by_hand * 1.02


def test_percentile_drops_outliers_only() -> None:
    x = _normal()
    x[3, 7] = 1e6
    _, high = CALIBRATORS["percentile"](Observed.of(x), UINT8)
    assert high == 1e6  # one in 80,000 is more than 0.001 %
    x = np.tile(np.abs(_normal()), (4, 1))
    x[3, 7] = 1e6
    _, high = CALIBRATORS["percentile"](Observed.of(x), UINT8)
    assert high < 1e3


@pytest.mark.parametrize("name", sorted(CALIBRATORS))
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_constants_keep_their_value(name: str, value: float) -> None:
    seen = Observed.of(np.full((3, 4), value, np.float32))
    grid = asymmetric(*CALIBRATORS[name](seen, UINT8))
    assert grid.round(np.array([value], np.float32))[0] == pytest.approx(value, rel=1e-2)
