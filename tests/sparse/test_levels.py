"""Exact numbers of zeros, whatever the weights; comparisons between layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.sparse import ALLOCATIONS, Allocation, in_groups, kept_at


def _weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.standard_normal((7, 5)),
        "b": 10 * rng.standard_normal((3, 4, 3, 3)),
        "c": np.ones((10, 10)),
    }


@pytest.mark.parametrize("how", list(ALLOCATIONS))
@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.5, 0.9, 0.97])
def test_levels_are_exact(how: Allocation, sparsity: float) -> None:
    """Ties, as in the layer of ones, do not let more go than asked for."""
    weights = _weights()
    kept = kept_at(weights, sparsity, how)
    gone = {name: int(np.count_nonzero(~mask)) for name, mask in kept.items()}
    if how == "uniform":
        assert gone == {name: round(sparsity * weight.size) for name, weight in weights.items()}
    else:
        assert sum(gone.values()) == round(sparsity * sum(w.size for w in weights.values()))
    assert all(mask.any() for mask in kept.values()), "every layer keeps something"


@pytest.mark.parametrize("how", list(ALLOCATIONS))
def test_every_layer_keeps_one_element(how: Allocation) -> None:
    kept = kept_at(_weights(), 0.99999, how)
    assert {name: int(mask.sum()) for name, mask in kept.items()} == {"a": 1, "b": 1, "c": 1}


@settings(max_examples=100, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 9)),
        elements=st.sampled_from([0.0, -1.0, 1.0, 2.0, -0.5, 1e-30]),
    ),
    sparsity=st.floats(0.01, 0.99),
    how=st.sampled_from(list(ALLOCATIONS)),
)
def test_what_goes_is_no_larger_than_what_stays(
    weight: np.ndarray, sparsity: float, how: Allocation
) -> None:
    mask = kept_at({"w": weight}, sparsity, how)["w"]
    assert np.count_nonzero(~mask) == min(round(sparsity * weight.size), weight.size - 1)
    if not mask.all():
        assert np.abs(weight[~mask]).max() <= np.abs(weight[mask]).min()


def test_of_equal_weights_the_first_go() -> None:
    assert kept_at({"w": np.ones((2, 3))}, 0.5, "uniform")["w"].tolist() == [
        [False, False, False],
        [True, True, True],
    ]


def test_a_higher_level_keeps_a_part_of_a_lower_one() -> None:
    weights = _weights()
    for how in ALLOCATIONS:
        low, high = (kept_at(weights, sparsity, how) for sparsity in (0.4, 0.8))
        assert all(not (high[name] & ~low[name]).any() for name in weights)


def test_global_compares_magnitudes_and_deviation_does_not() -> None:
    weights = _weights()
    for how, shielded in (("global", True), ("deviation", False), ("lamp", False)):
        kept = kept_at({"a": weights["a"], "b": weights["b"]}, 0.3, how)  # type: ignore[arg-type]
        parts = {name: mask.mean() for name, mask in kept.items()}
        assert (parts["b"] > 0.9 and parts["a"] < 0.2) == shielded, parts


def test_lamp_is_the_published_score() -> None:
    """A weight's square over the sum of squares no smaller than it (Lee et al. 2021, eq. 2)."""
    weight = np.array([[3.0, -1.0, 2.0]])
    score = ALLOCATIONS["lamp"]
    assert score is not None
    assert np.allclose(score(weight), [1.0, 1 / 14, 4 / 13])


@pytest.mark.parametrize("axis", [0, 1])
def test_groups(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 12, 3))
    kept = in_groups(weight, axis, 2, 4)
    rows = np.moveaxis(kept, axis, -1).reshape(-1, 4)
    sizes = np.moveaxis(np.abs(weight), axis, -1).reshape(-1, 4)
    assert (rows.sum(1) == 2).all()
    assert (np.sort(sizes, 1)[:, 1] < np.where(rows, sizes, np.inf).min(1)).all()
