"""EVBMF finds the rank under the noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.factorize.evbmf import evbmf_rank


def spectrum(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "noise"),
    [(64, 128, 5, 1.0), (128, 64, 5, 1.0), (50, 50, 7, 0.3), (100, 1000, 20, 0.5)],
)
def test_finds_the_rank_under_noise(rows: int, columns: int, rank: int, noise: float) -> None:
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    noisy = signal + noise * rng.standard_normal((rows, columns))
    assert evbmf_rank(spectrum(noisy), rows, columns) == rank


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(30, 90),
    columns=st.integers(30, 90),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 99),
)
def test_noise_has_no_rank_at_any_scale(rows: int, columns: int, scale: float, seed: int) -> None:
    noise = scale * np.random.default_rng(seed).standard_normal((rows, columns))
    assert evbmf_rank(spectrum(noise), rows, columns) <= 1


def test_exact_and_empty_matrices() -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 90))
    assert evbmf_rank(spectrum(exact), 60, 90) == 3
    assert evbmf_rank(np.zeros(8), 8, 9) == 0
    assert evbmf_rank(np.ones(1), 1, 1) in (0, 1)
