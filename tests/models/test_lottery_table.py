"""The table of lottery tickets: a ticket's places with other weights, and a row that adds up."""

from __future__ import annotations

import numpy as np
from click.testing import CliRunner

from graphopt.sparse import find_weights, kept_weights
from models.lottery_table import drawn, main, redrawn
from passes.prune_weights import PruneWeights
from tests.asserting import apply_pass


def test_redrawn_has_the_places_of_the_ticket_and_other_weights() -> None:
    whole, other = drawn(0), drawn(1)
    ticket = apply_pass(whole.to_model(), PruneWeights(sparsity=0.9))
    found = find_weights(redrawn(ticket, other))[0]
    for name, weight in find_weights(ticket)[0].items():
        fresh = other.constant(name)
        assert fresh is not None
        assert np.array_equal(found[name], np.where(weight != 0, fresh, 0))
    assert set(kept_weights(redrawn(ticket, other)).pruned) == set(found)


def test_a_seed_draws_alike() -> None:
    first, second, other = drawn(3), drawn(3), drawn(4)
    assert first.content_hash() == second.content_hash()
    assert first.content_hash() != other.content_hash()


def test_one_row() -> None:
    options = ["--data=digits", "--seeds=1", "--steps=1", "--epochs=1", "--sparsity=0.5"]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    title, row = result.output.strip().splitlines()
    assert title.split()[:5] == ["seed", "weights", "whole", "ticket", "redrawn"]
    seed, left, *errors = row.split()
    assert (seed, left) == ("0", "133,100")
    assert all(0 <= float(error) <= 100 for error in errors)
