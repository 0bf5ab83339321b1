"""Families: what is coupled, what is frozen and why."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.coupling import couple, explain, prepare
from graphopt.ir import Graph
from tests.asserting import assert_same_outputs, parse
from tests.coupling.strategies import Builder
from tests.coupling.test_removal import CHAIN, cut_half


def test_a_chain() -> None:
    coupling = couple(Graph.load(parse(CHAIN)))
    assert [(f.name, f.size, f.exact) for f in coupling.families] == [
        ("w", 8, True),
        ("v", 6, True),
    ]
    members = {(m.tensor, m.axis) for m in coupling.family("w").members}
    assert members == {("w", 0), ("b", 0), ("v", 1)}
    reasons = {f.name: explain(f) for f in coupling.frozen}
    assert reasons == {
        "w#2": "input 'x' is what the caller gives",
        "u": "output 'y' is what the caller gets",
    }
    held = coupling.held["v"]
    assert (held.macs, held.parameters) == (6 * 8 * 64 + 6 * 4, 6 * 8 + 6 * 4)


ATTENTION = """attention (float[N,5,8] x) => (float[N,5,3] y)
<float[8,12] q, float[12] qb, float[8,12] k, float[8,12] v, float[12,8] o, float[8,3] h> {
    ql = MatMul(x, q)
    qa = Add(ql, qb)
    ka = MatMul(x, k)
    va = MatMul(x, v)
    heads = Constant<value_ints=[0, 5, 3, 4]>()
    qh = Reshape(qa, heads)
    kh = Reshape(ka, heads)
    vh = Reshape(va, heads)
    qt = Transpose<perm=[0,2,1,3]>(qh)
    kt = Transpose<perm=[0,2,3,1]>(kh)
    vt = Transpose<perm=[0,2,1,3]>(vh)
    s = MatMul(qt, kt)
    p = Softmax<axis=-1>(s)
    c = MatMul(p, vt)
    ct = Transpose<perm=[0,2,1,3]>(c)
    flat = Constant<value_ints=[0, 5, 12]>()
    cf = Reshape(ct, flat)
    z = MatMul(cf, o)
    y = MatMul(z, h)
}"""


@pytest.mark.parametrize(("inner", "sizes"), [(False, [3, 8]), (True, [4, 4, 8])])
def test_heads_are_found(inner: bool, sizes: list[int]) -> None:
    _, coupling = cut_half(parse(ATTENTION), 0, inner=inner)
    assert sorted(f.size for f in coupling.families) == sizes
    assert all(f.exact for f in coupling.families)


def test_heads_hold_what_they_are_multiplied_with() -> None:
    """Also the products of two activations, to whose axes they come through a Reshape."""
    coupling = couple(Graph.load(parse(ATTENTION)))
    heads = next(family for family in coupling.families if family.size == 3)
    projections, products = 4 * 5 * 8 * 12, 2 * 3 * 5 * 5 * 4
    assert coupling.held[heads.name].macs == projections + products


@pytest.mark.parametrize(
    "body",
    ["<float[3,6] w> { y = MatMul(x, w) }", "<float[6,3] w> { y = Gemm<transB=1>(x, w) }"],
)
def test_both_ends_of_a_product_hold_its_work(body: str) -> None:
    """Also of one that sums over what the caller gives, which has no channels."""
    coupling = couple(Graph.load(parse(f"t (float[2,3] x) => (float[2,6] y) {body}")))
    assert [coupling.held[family.name].macs for family in coupling.frozen] == [36, 36]


def test_a_joint_projection_of_query_key_and_value() -> None:
    b = Builder(np.random.default_rng(0))
    joint = b.node("MatMul", "x", b.weight(8, 36))
    split = b.node("Reshape", joint, b.integers(0, 5, 3, 3, 4))
    turned = b.node("Transpose", split, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.node("Gather", turned, b.constant(np.array(i)), axis=0) for i in range(3))
    scores = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = b.node("MatMul", b.node("Softmax", scores), v)
    back = b.node("Transpose", mixed, perm=[0, 2, 1, 3])
    out = b.node("MatMul", b.node("Reshape", back, b.integers(0, 5, 12)), b.weight(12, 3))
    _, coupling = cut_half(b.model({"x": ("N", 5, 8)}, [out]), 1)
    assert [f.size for f in coupling.families] == [3]
    assert {m.tensor: len(m.places) for m in coupling.families[0].members} == {"c0": 36, "c6": 12}


BLURRED = {
    "LayerNormalization": "n = LayerNormalization(a, s, t)",
    "decomposed": """
        axes = Constant<value_ints=[-1]>()
        mean = ReduceMean(a, axes)
        d = Sub(a, mean)
        sq = Mul(d, d)
        var = ReduceMean(sq, axes)
        eps = Constant<value_float=0.001>()
        ve = Add(var, eps)
        sd = Sqrt(ve)
        nn = Div(d, sd)
        ns = Mul(nn, s)
        n = Add(ns, t)""",
    "LpNormalization": "n = LpNormalization<axis=-1>(a)",
    "RMSNormalization": "n = RMSNormalization(a, s)",
}


@pytest.mark.parametrize("body", BLURRED.values(), ids=BLURRED)
def test_normalising_over_channels_blurs(body: str) -> None:
    text = f"""norm (float[N,5,8] x) => (float[N,5,3] y)
    <float[8,12] w, float[12] s, float[12] t, float[12,3] v> {{
        a = MatMul(x, w) {body}
        y = MatMul(n, v)
    }}"""
    used = " ".join(name for name in ("s", "t") if f", {name}" in body)
    for name in {"s", "t"} - set(used.split()):
        text = text.replace(f"float[12] {name}, ", "")
    _, coupling = cut_half(parse(text, opset=23), 0)
    assert [(f.name, f.size, f.exact) for f in coupling.families] == [("w", 12, False)]


FROZEN = {
    "an unknown operator": ("c = test.Strange(a)", "Strange"),
    "an unknown standard operator": ("c = Det(a)", "Det"),
    "softmax over channels": ("c = Softmax<axis=1>(a)", "compares"),
    "argmax over channels": ("i = ArgMax<axis=1>(a) c = Cast<to=1>(i)", "places"),
    "every other channel": (
        """s = Constant<value_ints=[0]>() e = Constant<value_ints=[6]>()
           x1 = Constant<value_ints=[1]>() two = Constant<value_ints=[2]>()
           c = Slice(a, s, e, x1, two)""",
        "every other",
    ),
}


@pytest.mark.parametrize(("body", "reason"), FROZEN.values(), ids=FROZEN)
def test_frozen(body: str, reason: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 18, "test" : 1]>
    frozen (float[2,3,4,4] x) => (float[2,6,4,4] c) <float[6,3,1,1] w> {{
        a = Conv(x, w)
        {body}
    }}"""
    coupling = couple(Graph.load(parse(text)))
    assert not coupling.families
    assert any(reason in explain(family) for family in coupling.frozen), coupling.frozen


def test_bodies_pin_what_they_read() -> None:
    text = """body (float[2,3] x, bool flag) => (float[2,6] y) <float[3,6] w> {
        a = MatMul(x, w)
        y = If (flag) <then_branch = one () => (float[2,6] p) { p = Relu(a) },
                       else_branch = two () => (float[2,6] q) { q = Neg(a) }>
    }"""
    coupling = couple(Graph.load(parse(text)))
    assert not coupling.families
    assert any("bodies" in explain(family) for family in coupling.frozen)


def test_shared_bias_is_given_to_each() -> None:
    text = """shared (float[N,4] x) => (float[N,3] y)
    <float[4,6] w, float[6,6] u, float[6] b, float[6,3] v> {
        a = Gemm(x, w, b)
        r = Relu(a)
        c = Gemm(r, u, b)
        y = MatMul(c, v)
    }"""
    graph = Graph.load(parse(text))
    assert [f.size for f in couple(graph).families] == [6]
    prepare(graph)
    assert [f.size for f in couple(graph).families] == [6, 6]
    cut_half(parse(text), 0)


def test_grouped_convolutions_keep_groups_even_through_a_shuffle() -> None:
    b = Builder(np.random.default_rng(0))
    first = b.node("Conv", "x", b.weight(30, 3, 1, 1), group=1)
    grouped = b.node("Conv", first, b.weight(30, 10, 1, 1), group=3)
    wide = b.node("Reshape", grouped, b.integers(0, 3, 10, 4, 4))
    turned = b.node("Transpose", wide, perm=[0, 2, 1, 3, 4])
    mixed = b.node("Reshape", turned, b.integers(0, 30, 4, 4))
    last = b.node("Conv", mixed, b.weight(6, 10, 1, 1), group=3)
    out = b.node("Conv", last, b.weight(2, 6, 1, 1))
    graph, coupling = cut_half(b.model({"x": ("N", 3, 4, 4)}, [out]), 0)
    assert coupling.solution.counted
    grouped_weight = next(n for n in graph.nodes if n.attrs.get("group") == 3).inputs[1].name
    weight = graph.constant(grouped_weight)
    assert weight is not None
    assert 12 <= len(weight) <= 18


STATES = """cell (float[4,N,5] x) => (float[4,N,3] y)
<float[1,24,5] w, float[1,24,6] r, float[1,6,6] h, float[6,3] v> {
    shape = Shape<start=1, end=2>(x)
    one = Constant<value_ints=[1]>()
    six = Constant<value_ints=[6]>()
    sizes = Concat<axis=0>(one, shape, six)
    zero = Constant<value=float[1] {VALUE}>()
    state = Expand(zero, sizes)
    a = LSTM<hidden_size=6>(x, w, r, , , state, state)
    s = Squeeze(a, one)
    y = MatMul(s, v)
}"""


def test_states_of_zeros_are_left_out() -> None:
    """Their size is computed, which would hold the hidden units; others stay."""
    for value, sizes in (("0.0", [6]), ("0.5", [])):
        model = parse(STATES.replace("VALUE", value).replace(", float[1,6,6] h", ""))
        graph = Graph.load(model)
        prepare(graph)
        graph.verify()
        assert_same_outputs(model, graph)
        assert [family.size for family in couple(graph).families] == sizes
