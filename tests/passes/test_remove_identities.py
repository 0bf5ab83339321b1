"""remove-identities: one line per row of the table, and the near misses."""

from __future__ import annotations

import pytest

from passes.remove_identities import RemoveIdentities
from tests.asserting import apply_pass, assert_rewrites, assert_unchanged, operators, parse

CONSTANTS = """<int64[8] none = {0,0,0,0,0,0,0,0}, int64[1] i0 = {0}, int64[1] i1 = {1},
int64[1] i3 = {3}, int64[1] big = {9223372036854775807}, int64[3] order = {0,1,2},
int64[4] same = {2,3,4,4}, int64[4] ones = {1,1,1,1}, int64[3] last = {3,1,4},
int64[4] copied = {0,0,0,-1}, float c0 = {0.0}, float c1 = {1.0}, float[1,3,1,1] w,
float[4] scales = {1.0,1.0,1.0,1.0}, bool yes = {1}, bool no = {0}, int64[1] backward = {-1},
int64[8] some = {0,0,1,0,0,0,0,0}, int64[4] other = {2,4,3,4}, double d0 = {0.0}>"""


def around(line: str, batch: str = "2", outputs: str = "float[p,q,r,s] y") -> str:
    """An operator between two others, so that nothing is an input or an output."""
    last = "b" if line else "a"
    return f"""g (float[{batch},3,4,4] x) => ({outputs}) {CONSTANTS}
    {{ a = Sigmoid(x) {line} y = Neg({last}) }}"""


NOTHING = [
    "b = Identity(a)",
    "b = Dropout(a)",
    "b = Dropout(a, c0, no)",
    "b = Cast<to=1>(a)",
    "b = CastLike(a, c0)",
    "b = Pad(a, none)",
    "b = Slice(a, i0, big, i1)",
    "b = Slice(a, i0, i3, i1)",
    "b = Gather<axis=1>(a, order)",
    "b = Transpose<perm=[0,1,2,3]>(a)",
    "b = Reshape(a, same)",
    "b = Reshape(a, copied)",
    "b = Expand(a, ones)",
    "b = Expand(a, last)",
    "b = Tile(a, ones)",
    "b = Concat<axis=1>(a)",
    "b = Sum(a)",
    "b = Max(a)",
    "b = Split<axis=1>(a, i3)",
    "b = Add(a, c0)",
    "b = Sub(a, c0)",
    "b = Mul(c1, a)",
    "b = Div(a, c1)",
    "b = Pow(a, c1)",
    "b = Resize(a, , scales)",
    'b = Resize<mode = "linear">(a, , , same)',
    "b = MaxPool<kernel_shape=[1,1]>(a)",
    "b = AveragePool<kernel_shape=[1,1], strides=[1,1]>(a)",
    "b = Clip(a)",
    "b = Where(yes, a, c0)",
]


@pytest.mark.parametrize("line", NOTHING)
def test_nothing_is_left_of(line: str) -> None:
    assert_rewrites(around(line), around(""), RemoveIdentities())


@pytest.mark.parametrize("line", [NOTHING[0], "b = Slice(a, i0, i3, i1)", "b = Reshape(a, copied)"])
def test_the_batch_may_be_dynamic(line: str) -> None:
    assert_rewrites(around(line, "N"), around("", "N"), RemoveIdentities())


@pytest.mark.parametrize(
    "line",
    [
        "b = Pad(a, some)",
        "b = Reshape(a, other)",
        "b = Slice(a, i1, big, i1)",
        "b = Slice(a, i0, big, i1, i3)",
        "b = Slice(a, backward, big, i1)",
        "b = Gather<axis=0>(a, i0)",
        "b = Transpose<perm=[0,1,3,2]>(a)",
        "b = Add(a, c1)",
        "b = Sub(c0, a)",
        "b = Div(c1, a)",
        "b = Pow(c1, a)",
        "b = Mul(a, w)",
        "b = Where(no, a, c0)",
        'b = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(a, , scales)',
        "b = MaxPool<kernel_shape=[1,1], strides=[2,2]>(a)",
        "b = Clip(a, c0)",
    ],
)
def test_something_is_left_of(line: str) -> None:
    assert_unchanged(around(line), RemoveIdentities())


@pytest.mark.parametrize("line", ["b = Cast<to=11>(a)", "b = CastLike(a, d0)"])
def test_another_type_is_another_tensor(line: str) -> None:
    assert_unchanged(around(line, outputs="double[p,q,r,s] y"), RemoveIdentities())


@pytest.mark.parametrize(("other", "left"), [("x", []), ("v", ["Shape", "Slice", "Slice"])])
def test_a_slice_up_to_a_named_size(other: str, left: list[str]) -> None:
    """The whole axis if the name is its own; anything if it is another's."""
    text = f"""g (float[N,3] x, float[M,3] v) => (float[p,q] y) {CONSTANTS}
    {{ a = Sigmoid(x) s = Shape({other}) n = Slice(s, i0, i1) b = Slice(a, i0, n, i0)
       y = Neg(b) }}"""
    graph = apply_pass(parse(text), RemoveIdentities())
    assert operators(graph) == ["Sigmoid", *left, "Neg"]


def test_the_mask_of_dropout_is_read() -> None:
    line = "b, m = Dropout(a) z = Not(m)"
    assert_unchanged(around(line, outputs="float[p,q,r,s] y, bool[p,q,r,s] z"), RemoveIdentities())


@pytest.mark.parametrize(
    ("outputs", "before", "after"),
    [
        ("float[2] y", "y = Identity(x)", "y = Identity(x)"),
        ("float[2] y, float[2] z", "y = Neg(x) z = Identity(y)", "y = Neg(x) z = Identity(y)"),
        ("float[2] y", "h = Neg(x) y = Identity(h)", "y = Neg(x)"),
        (
            "float[2] y, float[2] z",
            "h = Neg(x) y = Identity(h) z = Abs(h)",
            "y = Neg(x) z = Abs(y)",
        ),
    ],
)
def test_outputs_keep_their_names(outputs: str, before: str, after: str) -> None:
    head = f"g (float[2] x) => ({outputs})"
    assert_rewrites(f"{head} {{ {before} }}", f"{head} {{ {after} }}", RemoveIdentities())


def test_a_wider_constant_widens_the_output() -> None:
    zeros = ",".join("0" * 12)
    text = f"g (float[1,4] x) => (float[3,4] y) <float[3,4] o = {{{zeros}}}>"
    assert_unchanged(f"{text} {{ a = Neg(x) b = Add(a, o) y = Neg(b) }}", RemoveIdentities())


def test_sizes_of_one_need_no_reduction() -> None:
    text = """g (float[N,3,1,1] x) => (float[N,3,1,1] y) <int64[2] axes = {2,3}>
    { a = Sigmoid(x) b = GlobalAveragePool(a) c = ReduceMean<axes=[2,3]>(b) y = Neg(c) }"""
    after = "g (float[N,3,1,1] x) => (float[N,3,1,1] y) { a = Sigmoid(x) y = Neg(a) }"
    assert_rewrites(text, after, RemoveIdentities())
