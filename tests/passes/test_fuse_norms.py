"""fuse-norms: the ways of writing normalizations."""

from __future__ import annotations

import onnx
import pytest

from passes.fuse_norms import FuseNorms
from tests.asserting import apply_pass, assert_rewrites, assert_same_outputs, assert_unchanged

HEAD = """main (float[2,3,4,5] x) => (float[2,3,4,5] y)
<float[5] g, float[5] b, float[1,3,1,1] gc, float[3,1,1] bc, float[3] g3, float[3] b3,
 float[4,5] gw, float e = {0.00001}, float two = {2.0}, float one = {1.0}, float less = {-0.5},
 float half = {0.5}, float[5] ones = {1,1,1,1,1}, float[2,3,1,1] odd>"""
MEAN = "m = ReduceMean <axes=[{axes}]> (x) d = Sub (x, m)"
LAST = MEAN.format(axes="-1")
SQUARES = {
    "pow": "s = Pow (d, two) v = ReduceMean <axes=[-1]> (s) w = Add (v, e)",
    "mul": "s = Mul (d, d) v = ReduceMean <axes=[3]> (s) w = Add (e, v)",
    "anew": "f = Sub (x, m) s = Mul (f, f) v = ReduceMean <axes=[-1]> (s) w = Add (v, e)",
}
ROOTS = {
    "div": "r = Sqrt (w) n = Div (d, r)",
    "reciprocal": "r = Sqrt (w) q = Reciprocal (r) n = Mul (d, q)",
    "one over": "r = Sqrt (w) q = Div (one, r) n = Mul (q, d)",
    "pow": "q = Pow (w, less) n = Mul (d, q)",
}
LAYER = "LayerNormalization <axis=-1, epsilon=0.00001>"


@pytest.mark.parametrize("squares", SQUARES.values(), ids=SQUARES.keys())
@pytest.mark.parametrize("root", ROOTS.values(), ids=ROOTS.keys())
def test_layer_norm(squares: str, root: str) -> None:
    assert_rewrites(
        f"{HEAD} {{ {LAST} {squares} {root} k = Mul (n, g) y = Add (k, b) }}",
        f"{HEAD} {{ y = {LAYER} (x, g, b) }}",
        FuseNorms(),
    )


def test_layer_norm_of_sequences() -> None:
    head = HEAD.replace("float[2,3,4,5]", "float[2,4,5]")
    body = f"{LAST} {SQUARES['pow']} {ROOTS['div']} k = Mul (n, g) y = Add (k, b)"
    body = body.replace("axes=[3]", "axes=[2]")
    assert_rewrites(f"{head} {{ {body} }}", f"{head} {{ y = {LAYER} (x, g, b) }}", FuseNorms())


def test_layer_norm_without_scale_and_bias() -> None:
    body = f"{LAST} {SQUARES['pow']} {ROOTS['div']} y = Relu (n)"
    after = f"n = {LAYER} (x, ones) y = Relu (n)"
    assert_rewrites(f"{HEAD} {{ {body} }}", f"{HEAD} {{ {after} }}", FuseNorms())


def test_layer_norm_over_two_axes() -> None:
    squares = "s = Mul (d, d) v = ReduceMean <axes=[3,2]> (s) w = Add (v, e)"
    head = HEAD.replace("float[2,3,4,5]", "float[2,3,6,4,5]").replace("[3,2]", "[4,3]")
    body = f"{MEAN.format(axes='-2,-1')} {squares.replace('[3,2]', '[4,3]')} {ROOTS['div']}"
    after = "y = LayerNormalization <axis=-2, epsilon=0.00001> (x, gw, gw2)"
    head = head.replace("float[4,5] gw,", "float[4,5] gw, float[4,5] gw2,")
    assert_rewrites(
        f"{head} {{ {body} k = Mul (n, gw) y = Add (k, half) }}",
        f"{head} {{ {after} }}",
        FuseNorms(),
    )


@pytest.mark.parametrize("opset", [12, 17])
def test_instance_norm(opset: int) -> None:
    squares = "s = Mul (d, d) v = ReduceMean <axes=[2,3]> (s) w = Add (v, e)"
    body = f"{MEAN.format(axes='2,3')} {squares} {ROOTS['div']} k = Mul (n, gc) y = Add (k, bc)"
    after = "y = InstanceNormalization <epsilon=0.00001> (x, g3, b3)"
    assert_rewrites(f"{HEAD} {{ {body} }}", f"{HEAD} {{ {after} }}", FuseNorms(), opset=opset)


def test_scale_folds_into_the_operators() -> None:
    body = f"n = {LAYER} (x, g) k = Div (n, two) y = Sub (k, b)"
    assert_rewrites(f"{HEAD} {{ {body} }}", f"{HEAD} {{ y = {LAYER} (x, g, b) }}", FuseNorms())


TAIL = f"{SQUARES['pow']} {ROOTS['div']} y = Relu (n)"
STAYS = {
    "other axes for the mean": f"{MEAN.format(axes='2')} {TAIL}",
    "another tensor's mean": f"z = Relu (x) {LAST.replace('> (x)', '> (z)')} {TAIL}",
    "a root mean square before its operator": """
        s = Mul (x, x) v = ReduceMean <axes=[-1]> (s) w = Add (v, e) r = Sqrt (w) y = Div (x, r)""",
    "another power": f"{LAST} {SQUARES['pow'].replace('two', 'half')} {ROOTS['div']} y = Relu (n)",
    "a scale that varies over the batch": f"n = {LAYER} (x, g) y = Mul (n, odd)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {body} }}", FuseNorms())


def test_an_older_operator_set_has_no_layer_norm() -> None:
    body = f"{LAST} {SQUARES['pow']} {ROOTS['div']} y = Relu (n)"
    assert_unchanged(f"{HEAD} {{ {body} }}", FuseNorms(), opset=16)


def test_unknown_sizes_stay() -> None:
    head = HEAD.replace("float[2,3,4,5]", "float[2,3,4,N]")
    assert_unchanged(f"{head} {{ {LAST} {TAIL} }}", FuseNorms())


def test_root_mean_square_in_its_operator_set() -> None:
    body = """s = Mul (x, x) v = ReduceMean (s, last) w = Add (v, e) r = Sqrt (w) n = Div (x, r)
              y = Mul (n, g)"""
    head = HEAD.replace("float half", "int64[1] last = {-1}, float half")
    after = "y = RMSNormalization <axis=-1, epsilon=0.00001> (x, g)"
    assert_rewrites(f"{head} {{ {body} }}", f"{head} {{ {after} }}", FuseNorms(), opset=23)


@pytest.mark.parametrize(
    "body",
    [
        "s = Mul (d, d) v = {mean} (s) w = Add (v, wide) r = Sqrt (w) y = Div (d, r)",
        "s = Mul (d, d) v = {mean} (s) w = Add (v, e) r = Sqrt (w) q = Div (one, r) y = Mul (d, q)",
        "s = Pow (d, two) v = {mean} (s) w = Add (v, e) r = Sqrt (w) y = Div (d, r)",
    ],
)
def test_a_constant_that_adds_an_axis_stays(body: str) -> None:
    head = """main (float[3,4] x) => (float[a,b,c] y)
    <float[1,1,1] wide, float e = {0.001}, float[1,1,1] one = {1}, float[1,1,1] two = {2}>"""
    mean = "ReduceMean <axes=[-1]>"
    assert_unchanged(
        f"{head} {{ m = {mean} (x) d = Sub (x, m) {body.format(mean=mean)} }}", FuseNorms()
    )


def test_another_domain_may_call_something_else_sub() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17, "other" : 1]>
        g (float[2,4] x) => (float[2,4] y) <float e = {0.001}> {
            m = ReduceMean <axes=[-1]> (x) d = other.Sub (x, m) s = Mul (d, d)
            v = ReduceMean <axes=[-1]> (s) w = Add (v, e) r = Sqrt (w) y = Div (d, r)
        }
        <domain: "other", opset_import: ["" : 17]> Sub (a, b) => (c) { c = Mul (a, b) }"""
    )
    assert_same_outputs(model, apply_pass(model, FuseNorms()))
