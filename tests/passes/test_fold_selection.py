"""fold-selection: channels taken by constant indices, beside convolutions."""

from __future__ import annotations

import pytest

from passes.fold_selection import FoldSelection
from tests.asserting import assert_rewrites, assert_unchanged

HEAD = """main (float[2,4,6,6] x) => (float[a,b,c,d] y)
<float[3,4,3,3] w, float[4,4,1,1] full, float[2,4,1,1] half, float[4,1,3,3] deep, float[4] b,
 float[2,2,1,1] grouped, float[2] c, int64[4] index = {2, 0, -1, 1}, int64[2] some = {3, 0},
 int64[6] many = {0, 0, 1, 1, 2, 2}, float[2,1,3,3] tiny>"""
GATHER = "g = Gather <axis=1> (x, index)"

REWRITES = {
    "a conv before": (
        "d = Conv (x, full, b) y = Gather <axis=1> (d, index)",
        "y = Conv (x, full, b)",
    ),
    "part of a conv before": (
        "d = Conv (x, full, b) y = Gather <axis=1> (d, some)",
        "y = Conv (x, half, c)",
    ),
    "a conv after": (f"{GATHER} y = Conv (g, w)", "y = Conv (x, w)"),
    "a depthwise conv after": (
        f"{GATHER} d = Conv <group=4> (g, deep, b) r = Relu (d) y = Abs (r)",
        "d = Conv <group=4> (x, deep, b) g = Gather <axis=1> (d, index) r = Relu (g) y = Abs (r)",
    ),
    "a depthwise conv and one after that": (
        f"{GATHER} d = Conv <group=4> (g, deep, b) y = Conv (d, full)",
        "d = Conv <group=4> (x, deep, b) y = Conv (d, full)",
    ),
    "several": (
        f"{GATHER} d = Conv (g, full) e = Conv <group=4, pads=[1,1,1,1]> (g, deep) y = Add (d, e)",
        """d = Conv (x, full) e = Conv <group=4, pads=[1,1,1,1]> (x, deep)
           f = Gather <axis=1> (e, index) y = Add (d, f)""",
    ),
}


@pytest.mark.parametrize(("before", "after"), REWRITES.values(), ids=REWRITES.keys())
def test_rewrites(before: str, after: str) -> None:
    assert_rewrites(f"{HEAD} {{ {before} }}", f"{HEAD} {{ {after} }}", FoldSelection())


STAYS = {
    "not all channels": "g = Gather <axis=1> (x, some) y = Conv <group=2> (g, tiny)",
    "repeated channels": "d = Conv (x, full) y = Gather <axis=1> (d, many)",
    "another axis": "d = Conv (x, full) y = Gather <axis=2> (d, index)",
    "another reader": f"{GATHER} d = Conv (g, full) y = Add (d, g)",
    "groups": f"{GATHER} y = Conv <group=2> (g, grouped)",
    "a shared weight": f"{GATHER} d = Conv (g, full) y = Conv (d, full)",
    "the conv before is read elsewhere": """
        d = Conv (x, full) g = Gather <axis=1> (d, index) y = Add (d, g)""",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"{HEAD} {{ {body} }}", FoldSelection())
