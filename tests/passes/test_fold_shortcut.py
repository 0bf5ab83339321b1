"""fold-shortcut: shortcuts that drop pixels and add empty channels."""

from __future__ import annotations

import pytest

from passes.fold_shortcut import FoldShortcut
from tests.asserting import (
    apply_pass,
    assert_same_outputs,
    assert_unchanged,
    assert_valid,
    operators,
    parse,
)


def shortcut(
    *,
    begin: str = "0,0",
    end: int = 2**63 - 1,
    steps: str = "2,2",
    pads: str = "0,2,0,0,0,3,0,0",
    pad: str = "",
    add: str = "y = Add (c, p)",
) -> str:
    return f"""main (float[2,4,8,7] x) => (float[2,9,n,m] y)
        <float[9,4,3,3] w, float[2,9,4,4] other> {{
        b = Constant <value_ints=[{begin}]> () e = Constant <value_ints=[{end},{end}]> ()
        axes = Constant <value_ints=[2,3]> () steps = Constant <value_ints=[{steps}]> ()
        pads = Constant <value_ints=[{pads}]> () one = Constant <value_float=1.0> ()
        c = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w)
        s = Slice (x, b, e, axes, steps) p = Pad {pad or "(s, pads)"} {add} }}"""


@pytest.mark.parametrize("add", ["y = Add (c, p)", "y = Add (p, c)"])
def test_becomes_a_convolution(add: str) -> None:
    model = parse(shortcut(add=add))
    graph = apply_pass(model, FoldShortcut())
    assert sorted(operators(graph)) == ["Add", "Conv", "Conv"]
    assert_valid(graph)
    assert_same_outputs(model, graph, tolerance=0.0)


def test_the_batch_norm_of_a_convolution() -> None:
    text = shortcut(add="n = BatchNormalization (c, g, h, i, var) y = Add (p, n)")
    more = "float[9] g, float[9] h, float[9] i, float[9] var, float[9,4,3,3] w"
    model = parse(text.replace("float[9,4,3,3] w", more))
    graph = apply_pass(model, FoldShortcut())
    assert operators(graph).count("Conv") == 2
    assert_same_outputs(model, graph)


STAYS = {
    "an offset": shortcut(begin="1,1", add="y = Add (p, other)"),
    "a window": shortcut(end=7),
    "pads of the image": shortcut(pads="0,2,0,0,0,3,1,0", add="y = Abs (p)"),
    "ones": shortcut(pad="(s, pads, one)"),
    "edges": shortcut(pad='<mode="edge"> (s, pads)'),
    "no convolution beside": shortcut(add="y = Add (p, other)"),
    "no addition": shortcut(add="y = Mul (p, c)"),
    "no channels added": shortcut(pads="0,0,0,0,0,0,0,0", add="y = Conv <pads=[1,1,1,1]> (p, w)"),
}


@pytest.mark.parametrize("text", STAYS.values(), ids=STAYS.keys())
def test_stays(text: str) -> None:
    assert_unchanged(text, FoldShortcut())
