"""merge-affine: constants in a row."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.ir import Graph
from graphopt.passbase import Context
from passes.fold_affine import FoldAffine
from passes.merge_affine import MergeAffine
from tests.asserting import assert_rewrites, assert_unchanged, operators, parse

HEAD = """main (float[2,4,5,5] x) => (float[2,4,5,5] y)
<float[4,1,1] a, float[1] b_var, float[5,5] image, float half = {0.5}, float one = {1.0},
 float r2 = {1.414}>"""


@pytest.mark.parametrize("second", ["Mul (t, b_var)", "Div (t, b_var)", "Mul (b_var, t)"])
def test_factors(second: str) -> None:
    assert_rewrites(
        HEAD + f"{{ t = Mul (x, a) y = {second} }}", HEAD + "{ y = Mul (x, a) }", MergeAffine()
    )


@pytest.mark.parametrize("second", ["Add (t, b_var)", "Sub (t, b_var)"])
def test_offsets(second: str) -> None:
    assert_rewrites(
        HEAD + f"{{ t = Sub (x, a) y = {second} }}", HEAD + "{ y = Add (x, a) }", MergeAffine()
    )


def test_a_factor_moves_ahead_of_an_offset_into_a_projection() -> None:
    head = """main (float[2,3,4] x) => (float[2,3,6] y)
    <float[4,6] w, float[6] b, float eighth = {0.125}>"""
    before = "{ p = MatMul (x, w) q = Add (p, b) y = Mul (q, eighth) }"
    after = "{ p = MatMul (x, w) y = Add (p, b) }"
    assert_rewrites(head + before, head + after, MergeAffine(), FoldAffine())


def test_a_factor_moves_ahead_of_an_offset_to_a_factor() -> None:
    before = "{ s = Mul (x, a) t = Add (s, half) y = Mul (t, b_var) }"
    after = "{ s = Mul (x, a) y = Add (s, b_var) }"
    assert_rewrites(HEAD + before, HEAD + after, MergeAffine())


STAYS = {
    "different kinds": "t = Mul (x, a) y = Add (t, b_var)",
    "the merged constant would be larger": "t = Mul (x, a) y = Mul (t, image)",
    "read twice": "t = Mul (x, a) u = Mul (t, b_var) y = Add (t, u)",
    "nothing ahead absorbs it": "t = Add (x, a) y = Mul (t, b_var)",
    "the end of a GELU": """
        q = Div (x, r2) e = Erf (q) f = Add (e, one) m = Mul (x, f) d = Mul (m, half)
        y = Mul (d, a)""",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {body} }}", MergeAffine())


@pytest.mark.parametrize(
    "body",
    [
        "t = Mul (x, large) y = Mul (t, large)",
        "t = Mul (x, tiny) y = Mul (t, tiny)",
        "s = Mul (x, large) t = Add (s, large) y = Mul (t, large)",
    ],
)
def test_what_half_precision_cannot_hold_stays(body: str) -> None:
    model = parse(f"main (float16[3] x) => (float16[3] y) {{ {body} }}")
    for name, value in (("large", 300), ("tiny", 1e-4)):
        array = np.array(value, np.float16)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    graph = Graph.load(model)
    before = operators(graph)
    MergeAffine().run(graph, Context(original=graph))
    assert operators(graph) == before


def test_rounding_by_a_large_offset_stays() -> None:
    head = "main (float[3] x) => (float[3] y) <float large = {12582912.0}>"
    assert_unchanged(f"{head} {{ t = Add (x, large) y = Sub (t, large) }}", MergeAffine())
