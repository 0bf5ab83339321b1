"""fuse-gelu: GELU in pieces."""

from __future__ import annotations

import pytest

from passes.fuse_gelu import FuseGelu
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = "main (float[2,3,5] x) => (float[2,3,5] y)"
CONSTANTS = """h = Constant <value_float=0.5> () one = Constant <value_float=1.0> ()
    two = Constant <value_float=2.0> () r = Constant <value_float=1.41421356> ()
    i = Constant <value_float=0.70710678> ()"""
ERF = "d = Div (x, r) e = Erf (d) p = Add (e, one)"

FORMS = {
    "exporter": f"{ERF} m = Mul (x, p) y = Mul (m, h)",
    "half of the gate": f"{ERF} g = Mul (h, p) y = Mul (x, g)",
    "half of x": f"{ERF} g = Mul (x, h) y = Mul (g, p)",
    "divided": f"{ERF} m = Mul (p, x) y = Div (m, two)",
    "a factor within": "d = Mul (x, i) e = Erf (d) p = Add (one, e) m = Mul (x, p) y = Mul (m, h)",
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS.keys())
def test_becomes_the_operator_where_there_is_one(body: str) -> None:
    before = f"{HEAD} {{ {CONSTANTS} {body} }}"
    assert_rewrites(before, f"{HEAD} {{ y = Gelu (x) }}", FuseGelu(), opset=20)


@pytest.mark.parametrize("gate", ["g = Mul (h, p)", "g = Div (p, two)"])
@pytest.mark.parametrize("product", ["Mul (x, g)", "Mul (g, x)"])
def test_is_put_in_order_for_older_operator_sets(gate: str, product: str) -> None:
    before = f"{HEAD} {{ {CONSTANTS} {ERF} {gate} y = {product} }}"
    after = f"{HEAD} {{ {CONSTANTS} {ERF} m = Mul (x, p) y = Mul (m, h) }}"
    assert_rewrites(before, after, FuseGelu())


def test_what_else_reads_a_piece_keeps_it() -> None:
    head = "main (float[2,5] x) => (float[2,5] y, float[2,5] e)"
    body = f"{ERF} m = Mul (x, p) y = Mul (m, h)"
    after = f"{head} {{ {CONSTANTS} d = Div (x, r) e = Erf (d) y = Gelu (x) }}"
    assert_rewrites(f"{head} {{ {CONSTANTS} {body} }}", after, FuseGelu(), opset=20)


TAIL = "g = Mul (p, h) y = Mul (x, g)"
STAYS = {
    "another factor": f"{ERF} m = Mul (x, p) y = Mul (m, one)",
    "another divisor": f"d = Div (x, two) e = Erf (d) p = Add (e, one) {TAIL}",
    "another offset": f"d = Div (x, r) e = Erf (d) p = Add (e, two) {TAIL}",
    "another factor of the gate": f"{ERF} g = Mul (p, h) y = Mul (d, g)",
    "another function": f"d = Div (x, r) e = Tanh (d) p = Add (e, one) {TAIL}",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
@pytest.mark.parametrize("opset", [17, 20])
def test_stays(body: str, opset: int) -> None:
    assert_unchanged(f"{HEAD} {{ {CONSTANTS} {body} }}", FuseGelu(), opset=opset)


@pytest.mark.parametrize("form", ["exporter", "half of x"])
def test_orders_that_are_recognised_stay(form: str) -> None:
    assert_unchanged(f"{HEAD} {{ {CONSTANTS} {FORMS[form]} }}", FuseGelu())
