"""Families: what is coupled, what is frozen and why, operator by operator."""

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


ROWS = {
    "group norm": (
        """(float[N,3,4,4] x) => (float[N,3,4,4] y)
        <float[8,3,1,1] w, float[8] s, float[8] t, float[3,8,1,1] v> {
            a = Conv(x, w)
            n = GroupNormalization<num_groups=4>(a, s, t)
            y = Conv(n, v)
        }""",
        [4],
    ),
    "group norm in pieces": (
        """(float[N,3,4,4] x) => (float[N,3,4,4] y)
        <float[8,3,1,1] w, float[4] s, float[4] t, float[3,8,1,1] v> {
            a = Conv(x, w)
            groups = Constant<value_ints=[0, 4, -1]>()
            g = Reshape(a, groups)
            i = InstanceNormalization(g, s, t)
            whole = Constant<value_ints=[0, 8, 4, 4]>()
            n = Reshape(i, whole)
            y = Conv(n, v)
        }""",
        [4],
    ),
    "einsum": (
        """(float[N,5,8] x) => (float[N,5,3] y) <float[8,6] w, float[6,3] v> {
            a = Einsum<equation="bij,jk->bik">(x, w)
            r = Relu(a)
            y = Einsum<equation="...k,kl">(r, v)
        }""",
        [6],
    ),
    "tied weights": (
        """(float[N,8] x) => (float[N,8] y) <float[8,6] w> {
            a = MatMul(x, w)
            r = Relu(a)
            wt = Transpose(w)
            y = MatMul(r, wt)
        }""",
        [6],
    ),
    "weights with scales": (
        """(float[N,3,4,4] x) => (float[N,2,4,4] y)
        <int8[6,3,1,1] w, float[6] wvar, float[2,6,1,1] v> {
            d = DequantizeLinear<axis=0>(w, wvar)
            a = Conv(x, d)
            y = Conv(a, v)
        }""",
        [6],
    ),
    "lstm": (
        """(float[4,N,5] x) => (float[4,N,3] y)
        <float[2,24,5] w, float[2,24,6] r, float[2,48] b, float[2,16,12] w2, float[2,16,4] r2,
         float[8,3] v> {
            a = LSTM<hidden_size=6, direction="bidirectional">(x, w, r, b)
            t = Transpose<perm=[0,2,1,3]>(a)
            shape = Constant<value_ints=[4, -1, 12]>()
            f = Reshape(t, shape)
            c = LSTM<hidden_size=4, direction="bidirectional">(f, w2, r2)
            u = Transpose<perm=[0,2,1,3]>(c)
            shape2 = Constant<value_ints=[4, -1, 8]>()
            g = Reshape(u, shape2)
            y = MatMul(g, v)
        }""",
        [4, 6],
    ),
    "gru": (
        """(float[4,N,5] x) => (float[4,N,3] y)
        <float[1,18,5] w, float[1,18,6] r, float[1,36] b, float[6,3] v> {
            a = GRU<hidden_size=6, linear_before_reset=1>(x, w, r, b)
            axes = Constant<value_ints=[1]>()
            s = Squeeze(a, axes)
            y = MatMul(s, v)
        }""",
        [6],
    ),
    "fused attention": (
        """(float[N,5,8] x) => (float[N,5,3] y)
        <float[8,12] q, float[8,12] k, float[8,12] v, float[12,3] o> {
            a = MatMul(x, q)
            b = MatMul(x, k)
            c = MatMul(x, v)
            t = Attention<q_num_heads=3, kv_num_heads=3>(a, b, c)
            y = MatMul(t, o)
        }""",
        [3],
    ),
    "embedding": (
        """(float[N,5] x) => (float[N,5,3] y) <float[9,6] table, float[6,3] v> {
            i = Cast<to=7>(x)
            z = Constant<value_int=0>()
            n = Mul(i, z)
            e = Gather(table, n)
            y = MatMul(e, v)
        }""",
        [6],
    ),
    "fixed batch flattened by a number": (
        """(float[2,3,4,4] x) => (float[2,3] y) <float[8,3,1,1] w, float[128,3] v> {
            a = Conv(x, w)
            shape = Constant<value_ints=[2, 128]>()
            f = Reshape(a, shape)
            y = MatMul(f, v)
        }""",
        [8],
    ),
    "depth to space": (
        """(float[N,3,4,4] x) => (float[N,2,8,8] y) <float[24,3,1,1] w, float[2,6,1,1] v> {
            a = Conv(x, w)
            d = DepthToSpace<blocksize=2, mode="DCR">(a)
            y = Conv(d, v)
        }""",
        [6],
    ),
    "depth to space by columns": (
        """(float[N,3,4,4] x) => (float[N,2,8,8] y) <float[24,3,1,1] w, float[2,6,1,1] v> {
            a = Conv(x, w)
            d = DepthToSpace<blocksize=2, mode="CRD">(a)
            y = Conv(d, v)
        }""",
        [6],
    ),
    "space to depth": (
        """(float[N,3,4,4] x) => (float[N,2,2,2] y) <float[6,3,1,1] w, float[2,24,1,1] v> {
            a = Conv(x, w)
            d = SpaceToDepth<blocksize=2>(a)
            y = Conv(d, v)
        }""",
        [6],
    ),
    "a slope per channel": (
        """(float[N,3,4,4] x) => (float[N,2,4,4] y)
        <float[6,3,1,1] w, float[6,1,1] s, float[2,6,1,1] v> {
            a = Conv(x, w)
            p = PRelu(a, s)
            y = Conv(p, v)
        }""",
        [6],
    ),
    "transposed convolution in groups": (
        """(float[N,3,4,4] x) => (float[N,2,5,5] y)
        <float[6,3,1,1] w, float[6,4,2,2] t, float[8] b, float[2,8,1,1] v> {
            a = Conv(x, w)
            d = ConvTranspose<group=2>(a, t, b)
            y = Conv(d, v)
        }""",
        [3, 4],
    ),
    "resize to sizes": (
        """(float[1,3,4,4] x) => (float[1,2,8,8] y) <float[6,3,1,1] w, float[2,6,1,1] v> {
            a = Conv(x, w)
            s = Constant<value_ints=[1, 6, 8, 8]>()
            d = Resize(a, , , s)
            y = Conv(d, v)
        }""",
        [6],
    ),
    "reading neighbours": (
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) <float[6,3,1,1] w, float[2,6,1,1] v> {
            a = Conv(x, w)
            d = LRN<size=3>(a)
            y = Conv(d, v)
        }""",
        [6],
    ),
    "expand and where": (
        """(float[N,4] x) => (float[N,3] y)
        <float[4,6] w, float[1,6] e, float[6,3] v> {
            a = MatMul(x, w)
            shape = Shape(a)
            b = Expand(e, shape)
            z = Constant<value_float=0.0>()
            big = Greater(a, z)
            c = Where(big, a, b)
            y = MatMul(c, v)
        }""",
        [],
    ),
}


@pytest.mark.parametrize(("text", "sizes"), ROWS.values(), ids=ROWS)
def test_rows(text: str, sizes: list[int]) -> None:
    opset = 23 if "Attention" in text or "GroupN" in text else 18
    _, coupling = cut_half(parse(f"row {text}", opset=opset), 3)
    assert sorted(f.size for f in coupling.families) == sizes


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


INDEXED = {
    "looked up by pairs": (
        """(float[N,5] x) => (float[N,3] y) <float[4,2,6] table, float[6,3] v> {
            pairs = Constant<value = int64[1,2] {3, 1}>()
            e = GatherND(table, pairs)
            a = Add(e, e)
            y = MatMul(a, v)
        }""",
        [6],
    ),
    "written into rows": (
        """(float[2,3] x) => (float[2,3] y) <float[3,6] w, float[1,6] u, float[6,3] v> {
            a = MatMul(x, w)
            row = Constant<value = int64[1,1] {1}>()
            s = ScatterND(a, row, u)
            y = MatMul(s, v)
        }""",
        [6],
    ),
    "counted": (
        """(float[2,3] x) => (float[2,3] y) <float[3,6] w, float[6,3] v> {
            a = MatMul(x, w)
            n = Size(a)
            f = Cast<to=1>(n)
            s = Mul(a, f)
            y = MatMul(s, v)
        }""",
        [6],  # known before the model runs, and a constant by then
    ),
    "counted with an open size": (
        """(float[N,3] x) => (float[N,3] y) <float[3,6] w, float[6,3] v> {
            a = MatMul(x, w)
            n = Size(a)
            f = Cast<to=1>(n)
            s = Mul(a, f)
            y = MatMul(s, v)
        }""",
        [],
    ),
    "filled to an open size": (
        """(float[N,3] x) => (float[N,3] y) <float[3,6] w, float[6,3] v> {
            a = MatMul(x, w)
            n = Shape(a)
            z = ConstantOfShape(n)
            s = Add(a, z)
            y = MatMul(s, v)
        }""",
        [],
    ),
}


@pytest.mark.parametrize(("text", "sizes"), INDEXED.values(), ids=INDEXED)
def test_rows_of_indices(text: str, sizes: list[int]) -> None:
    _, coupling = cut_half(parse(f"row {text}"), 3)
    assert sorted(f.size for f in coupling.families) == sizes


MICROSOFT = {
    "transposed products": (
        """(float[N,5,8] x) => (float[N,6,3] y) <float[8,6] w, float[5,3] v, float[6,6] u> {
            a = MatMul(x, w)
            b = com.microsoft.TransposeMatMul<transB=1>(a, u)
            y = com.microsoft.FusedMatMul<transA=1>(b, v)
        }""",
        [6],
    ),
    "an activation quantized as it comes": (
        """(float[N,8] x) => (float[N,3] y) <float[8,6] w, int8[6,3] qvar, float[1] s> {
            a = MatMul(x, w)
            y = com.microsoft.DynamicQuantizeMatMul(a, qvar, s)
        }""",
        [6],
    ),
    "integers between": (
        """(float[N,8] x) => (float[N,3] y) <float[8,6] w, int8[6,3] qvar> {
            a = MatMul(x, w)
            i, s, z = DynamicQuantizeLinear(a)
            m = MatMulInteger(i, qvar, z)
            f = Cast<to=1>(m)
            y = Mul(f, s)
        }""",
        [6],
    ),
    "a sum that is normalised and kept": (
        """(float[N,5,8] x) => (float[N,5,3] y)
        <float[8,6] w, float[8,6] w2, float[6] g, float[6] b, float[6,3] v> {
            a = MatMul(x, w)
            c = MatMul(x, w2)
            n, m, i, s = com.microsoft.SkipLayerNormalization(a, c, g, b)
            t = Add(n, s)
            y = MatMul(t, v)
        }""",
        [6],
    ),
    "attention with a joint projection": (
        """(float[2,5,8] x) => (float[2,5,3] y)
        <float[8,6] e, float[6,36] w, float[36] b, float[12,3] v> {
            a = MatMul(x, e)
            t = com.microsoft.Attention<num_heads=3>(a, w, b)
            y = MatMul(t, v)
        }""",
        [3, 6],
    ),
}


@pytest.mark.parametrize(("text", "sizes"), MICROSOFT.values(), ids=MICROSOFT)
def test_rows_of_fused_operators(text: str, sizes: list[int]) -> None:
    header = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]> row '
    _, coupling = cut_half(parse(header + text), 3)
    assert sorted(f.size for f in coupling.families) == sizes
