"""simplify-axes: picks from an axis and reductions of a single element."""

from __future__ import annotations

import pytest

from passes.simplify_axes import SimplifyAxes
from tests.asserting import assert_rewrites, assert_unchanged


@pytest.mark.parametrize(("axis", "shape"), [(0, "1,3,4"), (1, "2,1,4"), (-1, "2,3,1")])
def test_a_pick_keeps_its_axis(axis: int, shape: str) -> None:
    head = f"main (float[2,3,4] x) => (float[{shape}] y)"
    before = f"""{head} {{ i = Constant <value_int=-1> () a = Constant <value_ints=[{axis}]> ()
        g = Gather <axis={axis}> (x, i) y = Unsqueeze (g, a) }}"""
    after = f"""{head} {{ i = Constant <value_ints=[-1]> ()
        y = Gather <axis={axis % 3}> (x, i) }}"""
    assert_rewrites(before, after, SimplifyAxes())


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"])
def test_a_reduction_of_one_element(op: str) -> None:
    head = "main (float[n,1,4,1] x) => (float[n,4] y)"
    axes = "a = Constant <value_ints=[-1,1]> ()"
    after = f"{head} {{ a = Constant <value_ints=[1,3]> () y = Squeeze (x, a) }}"
    before = f"{head} {{ {axes} y = {op} <keepdims=0> (x, a) }}"
    assert_rewrites(before, after, SimplifyAxes(), opset=18)


def test_axes_were_attributes() -> None:
    head = "main (float[n,1,4] x) => (float[n,4] y)"
    before = f"{head} {{ y = ReduceMean <axes=[-2], keepdims=0> (x) }}"
    after = f"{head} {{ y = Squeeze <axes=[1]> (x) }}"
    assert_rewrites(before, after, SimplifyAxes(), opset=11)


def test_all_axes_by_default() -> None:
    head = "main (float[1,1] x) => (float y)"
    after = f"{head} {{ a = Constant <value_ints=[0,1]> () y = Squeeze (x, a) }}"
    assert_rewrites(f"{head} {{ y = ReduceSum <keepdims=0> (x) }}", after, SimplifyAxes())


STAYS = {
    "several elements": "y = ReduceMean <axes=[1], keepdims=0> (x)",
    "an unknown number": "y = ReduceMean <axes=[0], keepdims=0> (x)",
    "the axis is kept": "y = ReduceMean <axes=[2]> (x)",
    "not the element itself": "y = ReduceSumSquare <axes=[2], keepdims=0> (x)",
    "no axes": "y = ReduceSum <noop_with_empty_axes=1, keepdims=0> (x)",
    "another axis": """i = Constant <value_int=0> () a = Constant <value_ints=[0]> ()
        g = Gather <axis=1> (x, i) y = Unsqueeze (g, a)""",
    "several picks": """i = Constant <value_ints=[0,1]> () a = Constant <value_ints=[1]> ()
        g = Gather <axis=1> (x, i) y = Unsqueeze (g, a)""",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS.keys())
def test_stays(body: str) -> None:
    assert_unchanged(f"main (float[n,3,1] x) => (float[a,b,c] y) {{ {body} }}", SimplifyAxes())
