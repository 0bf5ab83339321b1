"""factor-gates: shortcuts around gates."""

from __future__ import annotations

import pytest

from passes.factor_gates import FactorGates
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = """main (float[2,4,5,5] x, float[2,4,5,5] z, float[2,4,1,1] s) => (float[2,4,5,5] y)
<float one = {1.0}, float[4,1,1] c>"""


@pytest.mark.parametrize("product", ["Mul (x, s)", "Mul (s, x)"])
@pytest.mark.parametrize("total", ["Add (x, m)", "Add (m, x)"])
def test_gate(product: str, total: str) -> None:
    assert_rewrites(
        f"{HEAD} {{ m = {product} y = {total} }}",
        f"{HEAD} {{ t = Add (s, one) y = Mul (x, t) }}",
        FactorGates(),
    )


STAYS = {
    "as large": "m = Mul (x, z) y = Add (x, m)",
    "another tensor": "m = Mul (x, s) y = Add (z, m)",
    "a constant": "m = Mul (x, c) y = Add (x, m)",
    "read twice": "m = Mul (x, s) a = Add (x, m) y = Mul (a, m)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {body} }}", FactorGates())
