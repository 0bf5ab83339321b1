"""What the operators of each row of the table couple, and that cut == mask holds for it."""

from __future__ import annotations

import pytest

from tests.asserting import parse
from tests.coupling.test_removal import cut_half

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
