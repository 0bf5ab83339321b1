"""Weights are set to zero at exact levels, and what is shared, protected or odd is treated so."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context
from graphopt.sparse import kept_weights
from passes.prune_weights import PruneWeights
from tests.asserting import apply_pass, assert_same_outputs, assert_valid, parse
from tests.train.networks import perceptron, small, vectors

_NET = """g (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] c, float[8] b, float[8,16] w, float[16,5] v> {
    a = Conv<kernel_shape=[3,3]>(x, c, b)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    h = MatMul(f, w)
    y = MatMul(h, v)
}"""


def _zeros(graph: Graph, *names: str) -> int:
    arrays = [graph.constant(name) for name in names]
    return sum(int((array == 0).sum()) for array in arrays if array is not None)


def test_level_is_exact_and_biases_stay() -> None:
    model = parse(_NET)
    graph = apply_pass(model, PruneWeights(sparsity=0.75))
    assert _zeros(graph, "c", "w", "v") == round(0.75 * (8 * 27 + 8 * 16 + 16 * 5))
    assert _zeros(graph, "b") == 0
    assert kept_weights(graph).pruned == ("c", "w", "v")
    assert_valid(graph)


def test_what_stays_is_unchanged() -> None:
    model = parse(_NET)
    before, after = Graph.load(model), apply_pass(model, PruneWeights(sparsity=0.5))
    for name in ("c", "w", "v"):
        old, new = before.constant(name), after.constant(name)
        assert old is not None
        assert new is not None
        assert np.array_equal(new[new != 0], old[new != 0])


def test_patterns_protect() -> None:
    graph = apply_pass(parse(_NET), PruneWeights(sparsity=0.5, weights=("!c",)))
    assert _zeros(graph, "c") == 0
    assert _zeros(graph, "w", "v") == round(0.5 * (8 * 16 + 16 * 5))


def test_groups_of_inputs() -> None:
    """2:4 along the inputs of MatMul and of Gemm; a layer of three inputs is left alone."""
    graph = Graph.load(parse(_NET))
    context = Context(original=graph.clone())
    PruneWeights(groups="2:4").run(graph, context)
    weight = graph.constant("w")
    assert weight is not None
    assert ((weight != 0).reshape(2, 4, 16).sum(1) == 2).all()
    assert _zeros(graph, "c") == 0
    assert context.notes["left_alone"] == {"c": "its 3 inputs are no multiple of 4"}


def test_weight_of_two_layers_is_pruned_once() -> None:
    graph = apply_pass(
        parse(
            """g (float[N,6] x) => (float[N,6] y)
            <float[6,6] w> { a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, w) }"""
        ),
        PruneWeights(sparsity=0.5),
    )
    assert _zeros(graph, "w") == 18


def test_weight_that_something_else_reads_is_left_alone() -> None:
    text = """g (float[N,6] x) => (float[N,6] y, float[6,6] z)
        <float[6,6] w, float[6,6] u> { a = MatMul(x, w)  y = MatMul(a, u)  z = Abs(w) }"""
    graph = apply_pass(parse(text), PruneWeights(sparsity=0.5))
    assert _zeros(graph, "w") == 0
    assert _zeros(graph, "u") == 18


def test_nothing_to_prune() -> None:
    with pytest.raises(RecipeError, match="there is no weight to work on"):
        apply_pass(
            parse("g (float[N,6] x) => (float[N,6] y) { y = Relu(x) }"), PruneWeights(sparsity=0.5)
        )


def test_what_is_left_alone_is_told() -> None:
    """Computed from codes, read by others, empty, of a type that is not computed with."""
    text = """g (float[N,6] x, bfloat16[N,6] s) => (float[N,6] y, bfloat16[N,2] z)
        <float[6,6] t, float16[6,6] h, float[6,0] e, float[0,6] f, float[6,6] u, bfloat16[6,2] b> {
        a = MatMul(x, t)  c = Abs(t)  d = Add(a, c)
        w = Cast<to=1>(h)  i = MatMul(d, w)
        j = MatMul(i, e)  k = MatMul(j, f)
        l = Add(i, k)  y = MatMul(l, u)  z = MatMul(s, b) }"""
    graph = Graph.load(parse(text))
    context = Context(original=graph)
    PruneWeights(sparsity=0.5).run(graph, context)
    reasons = {
        "t": "Abs '' reads it too",
        "w": "it is stored as codes or in another type",
        "e": "it is empty",
        "f": "it is empty",
        "b": "it is bfloat16",
    }
    assert context.notes["left_alone"] == reasons
    assert context.notes["remark"] == "'t' is left as it was, Abs '' reads it too; and 4 more"
    with pytest.raises(RecipeError, match="no weight to work on"):
        PruneWeights(sparsity=0.5, weights=("t",)).run(graph, Context(original=graph))


def test_groups_that_do_not_divide_are_told() -> None:
    graph = Graph.load(parse(_NET))
    context = Context(original=graph)
    PruneWeights(groups="2:4").run(graph, context)
    assert context.notes["left_alone"] == {"c": "its 3 inputs are no multiple of 4"}
    assert context.notes["remark"] == "'c' is left as it was, its 3 inputs are no multiple of 4"


def test_pruned_already_changes_nothing() -> None:
    once = apply_pass(parse(_NET), PruneWeights(sparsity=0.6)).to_model()
    assert_same_outputs(once, apply_pass(once, PruneWeights(sparsity=0.3)), tolerance=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give one of sparsity and groups"),
        ({"sparsity": 1.0}, "above 0 and below 1, got 1.0"),
        ({"sparsity": 0.0}, "above 0 and below 1"),
        ({"sparsity": 0.5, "groups": "2:4"}, "give one of"),
        ({"groups": "4:4"}, "keeps fewer than all"),
        ({"groups": "a:b"}, "as 2:4"),
        ({"groups": "2:4", "course": "ramp"}, "goes with the courses"),
        ({"sparsity": 0.5, "allocation": "magic"}, "allocation is one of"),
        ({"sparsity": 0.5, "course": "magic"}, "course is one of"),
        ({"sparsity": 0.5, "steps": 0}, "steps must be at least 1"),
        ({"sparsity": 0.5, "until": 0.0}, "until must be above 0"),
        ({"sparsity": 0.5, "rate": 0.0}, "rate must be above 0"),
        ({"sparsity": 0.5, "epochs": 3}, "course=one-shot has no use for epochs; drop it, or"),
        ({"sparsity": 0.5, "rate": 0.1, "until": 0.9}, "no use for rate and until; drop them"),
        ({"sparsity": 0.5, "steps": 2}, "course=one-shot has no use for steps"),
        ({"sparsity": 0.5, "course": "ramp", "steps": 2}, "course=ramp has no use for steps"),
        ({"sparsity": 0.5, "course": "surgery", "holdout": 0.2}, "surgery has no use for holdout"),
        ({"sparsity": 0.5, "course": "rewind", "until": 0.5}, "course=rewind has no use for until"),
        ({"groups": "2:4", "allocation": "global"}, "groups=2:4 has no use for allocation"),
        (
            {"groups": "2:4", "course": "iterative", "steps": 5},
            "groups=2:4 are made at once; drop steps=5",
        ),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        PruneWeights(**options)  # type: ignore[arg-type]


def test_no_such_weight() -> None:
    with pytest.raises(RecipeError, match=r"no weight is called 'q\*'; there are c, w, v"):
        apply_pass(parse(_NET), PruneWeights(sparsity=0.5, weights=("q*",)))


def test_training_needs_data() -> None:
    with pytest.raises(RecipeError, match="course=ramp needs inputs"):
        apply_pass(parse(_NET), PruneWeights(sparsity=0.5, course="ramp"))


def _run(step: PruneWeights, graph: Graph, data: Dataset) -> Graph:
    step.run(graph, Context(original=graph.clone(), calibration=data, threads=1))
    return graph


@pytest.mark.parametrize("course", ["iterative", "ramp", "surgery", "rewind"])
def test_courses_end_at_the_level(course: Literal["iterative", "ramp"]) -> None:
    step = PruneWeights(sparsity=0.7, course=course, epochs=2, batch=16, augment=())
    if course in ("iterative", "rewind"):
        step = replace(step, steps=2)
    before = perceptron()
    graph = _run(step, perceptron(), vectors())
    assert _zeros(graph, "w0", "w1") == round(0.7 * 80)
    assert not np.array_equal(graph.constant("b0"), before.constant("b0"))  # type: ignore[arg-type]
    assert_valid(graph)


def test_groups_are_trained_on_once() -> None:
    step = PruneWeights(groups="2:4", course="iterative", epochs=1, batch=16, augment=())
    graph = _run(step, perceptron(), vectors())
    pruned = [name for name in ("w0", "w1") if _zeros(graph, name)]
    assert pruned
    for name in pruned:
        array = graph.constant(name)
        assert array is not None
        assert _zeros(graph, name) == array.size / 2


def test_rewound_weights_start_from_the_first_values() -> None:
    """With hardly any training after it, what is left is what the network started with."""
    step = PruneWeights(
        sparsity=0.5, course="rewind", steps=1, epochs=1, batch=80, rate=1e-7, warmup=0, augment=()
    )
    before, graph = perceptron(), _run(step, perceptron(), vectors())
    for name in ("w0", "w1", "b0"):
        old, new = before.constant(name), graph.constant(name)
        assert old is not None
        assert new is not None
        assert np.allclose(new[new != 0], old[new != 0], atol=1e-5)


def test_the_original_teaches_where_there_are_no_labels() -> None:
    rng = np.random.default_rng(0)
    data = Dataset.from_arrays({"x": rng.standard_normal((40, 3, 8, 8)).astype(np.float32)})
    step = PruneWeights(sparsity=0.5, course="ramp", epochs=2, batch=16, augment=())
    graph = _run(step, small(), data)
    assert _zeros(graph, "w0", "w1", "w2") == round(0.5 * (108 + 216 + 30))
