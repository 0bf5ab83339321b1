"""fold-space-to-depth: pixels rearranged into channels before a convolution."""

from __future__ import annotations

import pytest

from passes.fold_space_to_depth import FoldSpaceToDepth
from tests.asserting import assert_rewrites, assert_unchanged


def slices(order: str, step: int = 2, end: int = 2**63 - 1) -> str:
    """Slices with the offsets "00 10 01 11" and their Concat `f`."""
    parts = [
        f"""b{i} = Constant <value_ints=[{row},{column}]> ()
        s{i} = Slice (x, b{i}, e, axes, steps)"""
        for i, (row, column) in enumerate(map(tuple, order.split()))
    ]
    names = ", ".join(f"s{i}" for i in range(len(parts)))
    return f"""e = Constant <value_ints=[{end},{end}]> () axes = Constant <value_ints=[2,3]> ()
        steps = Constant <value_ints=[{step},{step}]> () {" ".join(parts)}
        f = Concat <axis=1> ({names})"""


def head(weight: str, sizes: str = "8,12") -> str:
    return f"main (float[2,3,{sizes}] x) => (float[2,4,n,m] y) <float[{weight}] w, float[4] b>"


CONVOLUTIONS = {
    "one tap": ("4,12,1,1", "", "4,3,2,2", "<strides=[2,2]>"),
    "pads": ("4,12,3,3", "<pads=[1,1,1,1]>", "4,3,6,6", "<pads=[2,2,2,2], strides=[2,2]>"),
    "strides": (
        "4,12,3,2",
        "<pads=[0,1,1,0], strides=[2,1]>",
        "4,3,6,4",
        "<pads=[0,2,2,0], strides=[4,2]>",
    ),
}


@pytest.mark.parametrize(
    ("weight", "attrs", "larger", "new"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys()
)
@pytest.mark.parametrize("order", ["00 10 01 11", "00 01 10 11", "11 00 01 10"])
def test_slices(weight: str, attrs: str, larger: str, new: str, order: str) -> None:
    before = f"{head(weight)} {{ {slices(order)} y = Conv {attrs} (f, w, b) }}"
    graph = assert_rewrites(
        before, f"{head(larger)} {{ y = Conv {new} (x, w, b) }}", FoldSpaceToDepth()
    )
    assert len(graph.nodes) == 1


def test_the_operator() -> None:
    before = f"""{head("4,12,3,3")} {{ f = SpaceToDepth <blocksize=2> (x)
        y = Conv <pads=[1,1,1,1]> (f, w) }}"""
    after = f"{head('4,3,6,6')} {{ y = Conv <pads=[2,2,2,2], strides=[2,2]> (x, w) }}"
    assert_rewrites(before, after, FoldSpaceToDepth())


def test_steps_of_three() -> None:
    order = "00 01 02 10 11 12 20 21 22"
    before = f"{head('4,27,1,1', '6,9')} {{ {slices(order, 3)} y = Conv (f, w) }}"
    after = f"{head('4,3,3,3', '6,9')} {{ y = Conv <strides=[3,3]> (x, w) }}"
    assert_rewrites(before, after, FoldSpaceToDepth())


def test_unknown_sizes() -> None:
    before = f"{head('4,12,1,1', 'h,w')} {{ {slices('00 10 01 11')} y = Conv (f, w) }}"
    after = f"{head('4,3,2,2', 'h,w')} {{ y = Conv <strides=[2,2]> (x, w) }}"
    assert_rewrites(before, after, FoldSpaceToDepth())


FOCUS = slices("00 10 01 11")
STAYS = {
    "an offset twice": f"{slices('00 10 01 01')} y = Conv (f, w)",
    "too short": f"{slices('00 10 01 11', end=6)} y = Conv (f, w)",
    "too long steps": f"{slices('00 10 01 11', step=3)} y = Conv (f, w)",
    "another reader": f"{FOCUS} r = Relu (f) a = Add (f, r) y = Conv (a, w)",
    "a dilated window": f"{FOCUS} y = Conv <dilations=[2,2], pads=[2,2,2,2]> (f, v)",
    "groups": f"{FOCUS} y = Conv <group=2> (f, half)",
    "automatic pads": f'{FOCUS} y = Conv <auto_pad="SAME_UPPER"> (f, v)',
    "other axes": f"{FOCUS} t = Transpose <perm=[0,1,3,2]> (f) y = Conv (t, w)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    more = "float[4,12,3,3] v, float[4,6,1,1] half, float[4] b"
    sizes = head("4,12,1,1").replace("float[4] b", more)
    assert_unchanged(f"{sizes} {{ {body} }}", FoldSpaceToDepth())
