"""fuse-hard-activations: the ways of writing hard-sigmoid and hard-swish."""

from __future__ import annotations

import pytest

from passes.fuse_hard_activations import FuseHardActivations
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = """main (float[2,4,5,5] x) => (float[2,4,5,5] y)
<float three = {3.0}, float zero = {0.0}, float[1] six = {6.0}, float one = {1.0},
 float sixth = {0.16666667}, float half = {0.5}, float fifth = {0.2}, float many = {7.0},
 float[4,1,1] each>"""
GATE = "HardSigmoid <alpha = {alpha}, beta = 0.5> (x)"
SIGMOID = f"{{ y = {GATE.format(alpha=0.16666667)} }}"
SWISH = f"{{ g = {GATE.format(alpha=0.16666667)} y = Mul (x, g) }}"

SIGMOIDS = {
    "add clip div": "a = Add (x, three) c = Clip (a, zero, six) y = Div (c, six)",
    "add clip mul": "a = Add (three, x) c = Clip (a, zero, six) y = Mul (sixth, c)",
    "add relu min": "a = Add (x, three) r = Relu (a) c = Min (r, six) y = Div (c, six)",
    "add max min": "a = Add (x, three) r = Max (zero, a) c = Min (six, r) y = Div (c, six)",
    "line then clip": "a = Mul (x, sixth) b = Add (a, half) y = Clip (b, zero, one)",
    "add div clip": "a = Add (x, three) b = Div (a, six) y = Clip (b, zero, one)",
}


@pytest.mark.parametrize("body", SIGMOIDS.values(), ids=SIGMOIDS.keys())
def test_hard_sigmoid(body: str) -> None:
    assert_rewrites(HEAD + f"{{ {body} }}", HEAD + SIGMOID, FuseHardActivations())


def test_hard_sigmoid_of_another_slope() -> None:
    body = "{ a = Mul (x, fifth) b = Add (a, half) y = Clip (b, zero, one) }"
    after = f"{{ y = {GATE.format(alpha=0.2)} }}"
    assert_rewrites(HEAD + body, HEAD + after, FuseHardActivations())


CLIPPED = "a = Add (x, three) c = Clip (a, zero, six)"

SWISHES = {
    "product then div": f"{CLIPPED} m = Mul (x, c) y = Div (m, six)",
    "product then mul": f"{CLIPPED} m = Mul (c, x) y = Mul (m, sixth)",
    "div then product": f"{CLIPPED} d = Div (c, six) y = Mul (x, d)",
    "x divided": f"d = Div (x, six) {CLIPPED} y = Mul (d, c)",
    "min and max": """
        a = Add (x, three) r = Max (a, zero) c = Min (r, six) m = Mul (x, c) y = Mul (sixth, m)""",
}


@pytest.mark.parametrize("body", SWISHES.values(), ids=SWISHES.keys())
def test_hard_swish(body: str) -> None:
    assert_rewrites(HEAD + f"{{ {body} }}", HEAD + SWISH, FuseHardActivations())


def test_x_may_itself_end_in_a_line() -> None:
    before = """{ s = Mul (x, fifth) t = Add (s, half) a = Add (t, three) c = Clip (a, zero, six)
                  m = Mul (t, c) y = Div (m, six) }"""
    after = """{ s = Mul (x, fifth) t = Add (s, half)
                 g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (t) y = Mul (t, g) }"""
    assert_rewrites(HEAD + before, HEAD + after, FuseHardActivations())


def test_clip_with_attributes() -> None:
    head = "main (float[2,4] x) => (float[2,4] y) <float three = {3.0}, float six = {6.0}>"
    before = """{ a = Add (x, three) c = Clip <min = 0.0, max = 6.0> (a)
                  m = Mul (x, c) y = Div (m, six) }"""
    assert_rewrites(head + before, head + SWISH, FuseHardActivations(), opset=9)


STAYS = {
    "another range": "a = Add (x, three) c = Clip (a, zero, many) m = Mul (x, c) y = Div (m, six)",
    "no factor": "a = Add (x, three) c = Clip (a, zero, six) y = Mul (x, c)",
    "a plain clip": "y = Clip (x, zero, one)",
    "an offset per channel": "a = Add (x, each) y = Clip (a, zero, one)",
    "the clip is read elsewhere": """
        a = Add (x, three) c = Clip (a, zero, six) d = Div (c, six) y = Add (c, d)""",
    "the product is read elsewhere": """
        a = Add (x, three) c = Clip (a, zero, six) m = Mul (x, c) d = Div (m, six)
        y = Add (m, d)""",
    "computed bounds": "z = Neg (zero) b = Mul (x, sixth) y = Clip (b, z, one)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {body} }}", FuseHardActivations())


def test_double_precision_stays() -> None:
    head = "main (double[2,4] x) => (double[2,4] y) <double s, double h, double z, double o_var>"
    assert_unchanged(
        head + "{ a = Mul (x, s) b = Add (a, h) y = Clip (b, z, o_var) }", FuseHardActivations()
    )


def test_an_output_in_the_middle_stays() -> None:
    head = HEAD.replace("(float[2,4,5,5] y)", "(float[2,4,5,5] c, float[2,4,5,5] y)")
    body = "{ a = Add (x, three) c = Clip (a, zero, six) m = Mul (x, c) y = Div (m, six) }"
    assert_unchanged(head + body, FuseHardActivations())
