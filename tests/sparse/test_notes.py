"""Notes follow weights that are stored in other forms, and what cannot be read is refused."""

from __future__ import annotations

import pytest

from graphopt.errors import ModelError
from graphopt.passbase import Context
from graphopt.sparse import Kept, keep_weights, kept_weights, pass_notes_on
from passes.fold_constants import FoldConstants
from passes.share_weights import ShareWeights
from passes.store_codebooks import StoreCodebooks
from tests.asserting import apply_pass, parse
from tests.train.networks import perceptron

_WIDE = "g (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }"


def test_notes_add_up_and_forget_what_is_gone() -> None:
    graph = perceptron()
    keep_weights(graph)
    assert not graph.metadata, "nothing is noted of nothing"
    keep_weights(graph, pruned=["w0", "nowhere"])
    keep_weights(graph, pruned=["w1", "w0"], shared=["w1"])
    assert kept_weights(graph) == Kept(("w0", "w1"), ("w1",))
    assert "nowhere" not in graph.metadata["graphopt.weights"]


def test_a_codebook_is_what_a_stored_weight_is_trained_as() -> None:
    graph = apply_pass(parse(_WIDE), ShareWeights(bits=3), StoreCodebooks())
    assert kept_weights(graph).shared == ("w_values",)
    keep_weights(graph, pruned=["w"])
    FoldConstants().run(graph, Context(original=graph))
    assert kept_weights(graph) == Kept(("w",), ("w",))


def test_heirs_get_the_notes_of_weights() -> None:
    graph = perceptron()
    keep_weights(graph, pruned=["w0"], shared=["b0"])
    pass_notes_on(graph, {"w1": "w0", "b1": "b0", "y": "w1"})
    assert kept_weights(graph) == Kept(("w0", "w1"), ("b0", "b1"))


@pytest.mark.parametrize(
    "text",
    ["garbage", "{}", "[]", "3", '{"pruned": 3, "shared": null}', '{"pruned": [], "shared": [[]]}'],
)
def test_notes_of_another_kind_are_refused(text: str) -> None:
    graph = perceptron()
    graph.set_metadata("graphopt.weights", text)
    with pytest.raises(ModelError, match=r"metadata 'graphopt.weights': must list the names"):
        kept_weights(graph)
    with pytest.raises(ModelError, match="take the entry out of the model"):
        keep_weights(graph, pruned=["w0"])
