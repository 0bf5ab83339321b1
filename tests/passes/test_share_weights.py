"""Layers get few values; zeros, small layers and what is protected stay as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import train
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.packed import pack
from graphopt.passbase import Context
from graphopt.sparse import kept_weights
from passes.prune_weights import PruneWeights
from passes.share_weights import ShareWeights
from passes.store_codebooks import StoreCodebooks
from tests.asserting import apply_pass, assert_valid, parse
from tests.train.networks import ALONE, QUICK, vectors

_NET = """g (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] c, float[8] b, float[8,64] w, float[64,5] v> {
    a = Conv<kernel_shape=[3,3]>(x, c, b)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    h = MatMul(f, w)
    y = MatMul(h, v)
}"""


def _values(graph: Graph, name: str) -> int:
    array = graph.constant(name)
    assert array is not None
    return len(np.unique(array))


def test_bits_of_layers() -> None:
    graph = apply_pass(parse(_NET), ShareWeights(bits=3, conv_bits=5))
    assert [_values(graph, name) for name in ("w", "v")] == [8, 8]
    assert 24 <= _values(graph, "c") <= 32, "a cluster may be empty"
    assert kept_weights(graph).shared == ("c", "w", "v")
    assert_valid(graph)


def test_products_of_batches_are_no_convolutions() -> None:
    text = "g (float[4,N,16] x) => (float[4,N,16] y) <float[4,16,16] w> { y = MatMul(x, w) }"
    assert _values(apply_pass(parse(text), ShareWeights(bits=3, conv_bits=5)), "w") == 8


def test_zeros_stay(tmp_path: Path) -> None:
    pruned = apply_pass(parse(_NET), PruneWeights(sparsity=0.8))
    shared = apply_pass(pruned.to_model(), ShareWeights(bits=4))
    for name in ("c", "w", "v"):
        before, after = pruned.constant(name), shared.constant(name)
        assert before is not None
        assert after is not None
        assert np.array_equal(before == 0, after == 0)
    sizes = [pack(g.to_bytes(), tmp_path / "m.gopt").size for g in (pruned, shared)]
    assert sizes[1] < 0.8 * sizes[0], "sharing is what packing makes use of"


def test_error_decides_the_bits() -> None:
    loose, tight = (apply_pass(parse(_NET), ShareWeights(bits=8, error=e)) for e in (0.05, 0.001))
    assert _values(loose, "w") < _values(tight, "w") < 64
    graph = Graph.load(parse(_NET))
    context = Context(original=graph.clone())
    ShareWeights(bits=8, error=0.01).run(graph, context)
    layers = context.notes["layers"]
    assert isinstance(layers, dict)
    assert all(isinstance(n, dict) and 0 < float(str(n["error"])) <= 0.01 for n in layers.values())


def test_layer_smaller_than_its_codebook_is_left_alone() -> None:
    text = "g (float[N,3] x) => (float[N,4] y) <float[3,4] w, float[4,4] u> "
    text += "{ a = MatMul(x, w)  y = MatMul(a, u) }"
    model = parse(text)
    graph = Graph.load(model)
    context = Context(original=graph.clone())
    ShareWeights(bits=4).run(graph, context)
    assert set(context.notes["left_alone"] or ()) == {"w", "u"}  # type: ignore[arg-type]
    assert str(context.notes["remark"]).endswith("smaller than its codebook; and 1 more")
    assert graph.fingerprint() == context.original.fingerprint()


def test_weight_of_one_number_stays_as_small_as_it_is() -> None:
    model = parse("""g (float[N,90] x) => (float[N,90] y) <int64[2] s> {
        w = ConstantOfShape<value=float[1] {0.5}>(s)  y = MatMul(x, w) }""")
    sizes = onnx.numpy_helper.from_array(np.array([90, 90], np.int64), "s")
    model.graph.initializer[0].CopyFrom(sizes)
    for step in (ShareWeights(bits=3), PruneWeights(sparsity=0.5)):
        with pytest.raises(RecipeError, match="its file holds one number for all of it"):
            apply_pass(model, step)
    assert len(apply_pass(model, StoreCodebooks()).to_bytes()) < 400


def test_training_moves_the_values_and_keeps_the_codes() -> None:
    graph = apply_pass(
        parse(
            """g (float[N,6] x) => (float[N,4] y)
            <float[6,40] w, float[40] b, float[40,4] v> {
                a = Gemm(x, w, b)  r = Relu(a)  y = MatMul(r, v) }"""
        ),
        ShareWeights(bits=2),
    )
    before = graph.constant("w")
    objective = train.objective_of("cross-entropy", 0.0)
    plan = replace(QUICK, holdout=0.0)
    train.finetune(graph, vectors(), objective, plan, resources=ALONE)
    after = graph.constant("w")
    assert before is not None
    assert after is not None
    pairs = {(float(old), float(new)) for old, new in zip(before.flat, after.flat, strict=True)}
    assert len(pairs) == 4
    assert all(old != new for old, new in pairs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 0}, "bits must be 1 to 12, got 0"),
        ({"bits": 20}, "bits must be 1 to 12"),
        ({"conv_bits": 13}, "conv_bits must be 1 to 12"),
        ({"error": 1.5}, "error must be above 0 and below 1"),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        ShareWeights(**options)  # type: ignore[arg-type]
