"""Rules for ranks: within the cost that is allowed, carrying the energy that is asked for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt.factorize import (
    METHODS,
    Kernel,
    by_energy,
    by_part,
    fixed,
    grid,
    kernel_of,
    within,
)
from graphopt.factorize.kernels import Chain
from graphopt.factorize.pieces import Decomposition, Ranks
from graphopt.ir import Graph
from tests.asserting import parse

FULL = st.one_of(
    st.tuples(st.integers(1, 300)), st.tuples(st.integers(1, 300), st.integers(1, 300))
)


@given(full=FULL, most=st.floats(0.01, 3.0), align=st.sampled_from([1, 8, 16]))
def test_by_part_is_the_most_that_is_allowed(full: Ranks, most: float, align: int) -> None:
    def part(ranks: Ranks) -> float:
        return 2.0 * float(np.mean([rank / size for rank, size in zip(ranks, full, strict=True)]))

    found = by_part(full, part, most, align)
    if found is None:
        assert part((1,) * len(full)) > most
        return
    assert part(found) <= most
    for rank, size in zip(found, full, strict=True):
        assert 1 <= rank <= size
        assert rank <= align or rank == size or rank % align == 0
    if len(full) == 1 and found != full:
        (rank,) = found
        larger = min(rank + 1 if rank < align else rank + align, full[0])
        assert part((larger,)) > most or larger == full[0]


@given(full=FULL, align=st.sampled_from([1, 8]))
def test_grid_rises_and_repeats_nothing(full: Ranks, align: int) -> None:
    def part(ranks: Ranks) -> float:
        return 2.0 * sum(ranks) / sum(full)

    found = list(grid(full, part, 1.0, align))
    assert len(set(found)) == len(found)
    costs = [part(ranks) for ranks in found]
    assert costs == sorted(costs)
    assert all(entry <= 1 for entry in costs)


@given(
    values=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=40), share=st.floats(0.05, 0.999)
)
def test_by_energy_is_the_least_that_carries_it(values: list[float], share: float) -> None:
    spectrum = np.sort(np.array(values))[::-1]
    decomposition = Decomposition((spectrum,), _unbuilt)
    (rank,) = by_energy(decomposition, (len(values),), share, 1)
    carried = np.cumsum(spectrum**2) / np.sum(spectrum**2)
    assert carried[rank - 1] >= share - 1e-9
    assert rank == 1 or carried[rank - 2] < share + 1e-9


@given(outer=st.integers(1, 27), inner=st.integers(1, 3), align=st.sampled_from([1, 8]))
def test_ranks_of_a_core_hold_each_other_down(outer: int, inner: int, align: int) -> None:
    text = """stem (float[1,3,8,8] x) => (float[1,64,6,6] y) <float[64,3,3,3] w> {
        y = Conv<kernel_shape=[3,3]>(x, w)
    }"""
    graph = Graph.load(parse(text))
    kernel = kernel_of(graph, graph.nodes[0])
    assert isinstance(kernel, Kernel)
    found = within(METHODS["tucker"], kernel, (outer, inner), align)
    assert found[1] == inner
    assert found[0] == (outer if outer <= 9 * inner else {1: 9, 8: 8}[align] * inner)
    assert within(METHODS["svd"], kernel, (outer,), align) == (outer,)


def test_fixed_knows_the_largest_rank() -> None:
    assert fixed((8, 6), 6) == (6, 6)
    assert fixed((8, 6), 7) is None


def _unbuilt(ranks: Ranks, rounds: int) -> Chain:
    raise AssertionError("ranks are chosen without building anything")
