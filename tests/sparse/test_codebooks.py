"""K-means: zero stays zero and alone, error falls with bits, values are means of what is theirs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.sparse import fit_codebook


def _weight(zeros: float = 0.5, size: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(size).astype(np.float32)
    weight[rng.random(size) < zeros] = 0
    return weight.reshape(40, -1)


@settings(max_examples=150, deadline=None)
@given(
    weight=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16]),
        st.tuples(st.integers(1, 8), st.integers(1, 12)),
        elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.25, 1e-3, -3.0, 7.0]),
    ),
    bits=st.integers(1, 6),
)
def test_any_weight(weight: np.ndarray, bits: int) -> None:
    book = fit_codebook(weight, bits)
    shared = book.weight()
    assert shared.shape == weight.shape
    assert shared.dtype == weight.dtype
    assert np.array_equal(shared == 0, weight == 0), "zeros stay zero, and only they are"
    assert len(np.unique(shared)) <= 2**bits
    assert np.array_equal(book.values[book.codes], shared)
    if len(np.unique(weight)) <= 2**bits - 1:
        assert np.array_equal(shared, weight)
        assert book.error == 0


@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_error_falls_with_bits(zeros: float) -> None:
    weight = _weight(zeros)
    errors = [fit_codebook(weight, bits).error for bits in range(1, 9)]
    assert all(after < before for before, after in itertools.pairwise(errors))
    measured = float(((fit_codebook(weight, 4).weight() - weight).astype(np.float64) ** 2).sum())
    assert errors[3] == pytest.approx(measured / float((weight.astype(np.float64) ** 2).sum()))


def test_values_are_means_of_the_nearest_weights() -> None:
    """Lloyd's two conditions: nothing else is a fixed point of k-means."""
    weight = _weight(0.3)
    book = fit_codebook(weight, 4)
    for place, value in enumerate(book.values):
        mine = weight[book.codes == place].astype(np.float64)
        assert float(value) == pytest.approx(mine.mean(), abs=1e-6)
    others = book.values[book.values != 0].astype(np.float64)
    kept = weight[weight != 0].astype(np.float64)
    nearest = others[np.abs(kept[:, None] - others).argmin(1)]
    assert np.allclose(nearest, book.weight()[weight != 0])


def test_one_weight_and_no_weight() -> None:
    assert fit_codebook(np.zeros((3, 3), np.float32), 2).weight().tolist() == [[0] * 3] * 3
    assert fit_codebook(np.full((2, 2), 5, np.float32), 1).weight().tolist() == [[5] * 2] * 2
