"""fold-zeros: products of whole numbers with zero."""

from __future__ import annotations

import numpy as np
import pytest

from passes.fold_zeros import FoldZeros
from tests.asserting import apply_pass, assert_unchanged, assert_valid, operators, parse, run_model


def test_a_product_that_keeps_an_input_alive() -> None:
    text = """main (int64 rate, float[2] x) => (float[2] y) {
        zero = Constant <value_int=0> () z = Mul (rate, zero)
        f = Cast <to=1> (z) y = Add (x, f) }"""
    model = parse(text)
    graph = apply_pass(model, FoldZeros())
    assert operators(graph) == ["Cast", "Add"]
    assert graph.inputs == ("rate", "x")
    assert_valid(graph)
    [y] = run_model(graph, {"rate": np.array(7), "x": np.array([1.5, -2.0], np.float32)})
    assert y.tolist() == [1.5, -2.0]


STAYS = {
    "a float": ("float[2]", "<value_float=0.0>"),
    "not zero": ("int64[2]", "<value_ints=[0,1]>"),
    "its size is not known": ("int64[n]", "<value_int=0>"),
    "large": ("int64[2000]", "<value_int=0>"),
}


@pytest.mark.parametrize(("kind", "value"), STAYS.values(), ids=STAYS.keys())
def test_stays(kind: str, value: str) -> None:
    body = f"z = Constant {value} () m = Mul (x, z) y = Neg (m)"
    assert_unchanged(f"main ({kind} x) => ({kind} y) {{ {body} }}", FoldZeros())


def test_an_output_stays() -> None:
    text = "main (int64[2] x) => (int64[2] y) { z = Constant <value_int=0> () y = Mul (x, z) }"
    assert_unchanged(text, FoldZeros())
