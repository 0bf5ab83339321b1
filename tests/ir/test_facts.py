"""Facts about tensors: integer values followed through shape arithmetic, shapes made sharper."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir import Edit, Graph, NewNode
from tests.asserting import assert_same_outputs, operators, parse, random_inputs, run_model


def load(body: str, *, signature: str = "float[N,3,8,8] x", more: str = "") -> Graph:
    """A graph whose last line computes y, loaded but not folded by hand."""
    return Graph.load(parse(f"g ({signature}) => (float y) {more} {{ {body} }}"))


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        ("s = Shape(x)  n = Gather<axis=0>(s, zero)  t = Concat<axis=0>(n, six, hw)", ("N", 6, 32)),
        ("s = Shape(x)  h = Slice(s, two, four)  t = Concat<axis=0>(minus, h)", (None, 8, 8)),
    ],
)
def test_reshape_follows_computed_targets(target: str, shape: tuple[int | str | None, ...]) -> None:
    more = """<int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] six = {6},
              int64[1] hw = {32}, int64[1] minus = {-1}>"""
    graph = load(f"{target} y = Reshape(x, t)", more=more)
    found = graph.shape("y")
    assert found is not None
    assert tuple(d if isinstance(d, int) or d == "N" else None for d in found) == shape


def test_static_shapes_are_gone_after_load() -> None:
    graph = load(
        """s = Shape(x) h = Gather(s, two) q = Mod(h, three) p = Add(q, three)
           t = Unsqueeze(p, axis) e = Concat<axis=0>(t, t) y = Expand(v, e)""",
        more="<int64 two = {2}, int64 three = {3}, int64[1] axis = {0}, float[1,1] v>",
    )
    assert operators(graph) == ["Expand"]
    assert graph.shape("y") == (5, 5)


@pytest.mark.parametrize(
    ("test", "picked"),
    [("Equal(s, minus)", "b"), ("Greater(s, minus)", "a"), ("Less(minus, s)", "a")],
)
def test_a_named_dimension_is_not_negative(test: str, picked: str) -> None:
    graph = load(
        f"s = Shape(x) c = {test} w = Where(c, a, b) y = Expand(v, w)",
        signature="float[N,M] x",
        more="<int64[2] minus={-1,-1}, int64[2] a={2,3}, int64[2] b={4,5}, float[1,1] v>",
    )
    assert graph.shape("y") == {"a": (2, 3), "b": (4, 5)}[picked]


def test_new_nodes_are_inferred_where_they_stand() -> None:
    graph = load("h = Relu(x) y = Relu(h)")
    relu = graph.nodes[0]
    add = [
        NewNode("Shape", ("x",), ("s",)),
        NewNode("Expand", (np.ones((1, 1, 1, 1), np.float32), "s"), ("e",)),
        NewNode("Mul", ("x", "e"), ("h",)),
    ]
    graph.apply(Edit(remove=(relu,), add=tuple(add)))
    known = graph.known("s")
    assert known is not None
    assert known.tolist() == ["N", 3, 8, 8]
    assert graph.shape("e") == ("N", 3, 8, 8)


def test_new_values_change_what_is_known() -> None:
    graph = load("y = Reshape(x, t)", signature="float[2,6] x", more="<int64[2] t = {3,4}>")
    assert graph.shape("y") == (3, 4)
    graph.set_constant("t", np.array([4, 3]))
    assert graph.shape("y") == (4, 3)


def test_padding_keeps_the_names_of_what_it_leaves() -> None:
    graph = load(
        "y = Pad(x, p)", signature="float[N,3,H,8] x", more="<int64[8] p = {0,0,1,0,0,0,1,0}>"
    )
    shape = graph.shape("y")
    assert shape is not None
    assert (shape[0], shape[1], shape[3]) == ("N", 3, 8)
    assert shape[2] != "H"


INTEGERS = {
    "past 64 bits": ("m = Mul(big, eight) y = Add(m, x)", "int64"),
    "past 64 bits and back": ("m = Add(big, big) n = Sub(m, big) y = Add(n, x)", "int64"),
    "below no sign": ("m = Sub(three, five) c = Cast<to=7>(m) y = Add(c, x)", "int64"),
    "past 32 bits": ("m = Mul(most, two) n = Div(m, two) y = Add(n, x)", "int32"),
    "a sum of nothing": (
        "s = ReduceSum<noop_with_empty_axes=1>(some) r = ReduceMax(s) y = Add(r, x)",
        "int64",
    ),
    "backwards from the first": ("s = Slice(some, far, far, zero, back) y = Add(s, x)", "int64"),
}


@pytest.mark.parametrize(("body", "dtype"), INTEGERS.values(), ids=INTEGERS.keys())
def test_loading_computes_integers_as_onnx_does(body: str, dtype: str) -> None:
    constants = """<int64[1] big = {4611686018427387904}, int64[1] eight = {8}, int64[1] zero = {0},
        uint8[1] three = {3}, uint8[1] five = {5}, int32[1] most = {2147483647}, int32[1] two = {2},
        int64[2] some = {5, 7}, int64[1] far = {-100}, int64[1] back = {-1}>"""
    model = parse(f"g ({dtype}[1] x) => ({dtype}[1] y) {constants} {{ {body} }}")
    assert_same_outputs(model, Graph.load(model), feeds={"x": np.ones(1, dtype)})


@pytest.mark.parametrize(
    ("body", "known"),
    [
        ("k = Min(n, zero)", None),
        ("k = Mod(n, zero)", None),
        ("b = Cast<to=9>(n) k = Cast<to=7>(b)", None),
        ("m = Max(zero, n) k = Max(m, zero)", "N"),
    ],
)
def test_a_size_that_has_only_a_name(body: str, known: str | None) -> None:
    """It is the larger of itself and zero; of other arithmetic nothing is known."""
    more = "<int64[1] zero = {0}>"
    graph = load(f"s = Shape(x) n = Gather(s, zero) {body} y = Cast<to=1>(k)", more=more)
    found = graph.known("k")
    assert (None if found is None else found.tolist()[0]) == known


def test_padding_of_chosen_axes_says_nothing_of_the_others() -> None:
    more = "<int64[4] p = {0,1,0,0}, float v = {0}, int64[2] axes = {1,0}>"
    text = f"g (float[N,3] x) => (float y) {more} {{ y = Pad(x, p, v, axes) }}"
    shape = Graph.load(parse(text, opset=18)).shape("y")
    assert shape is None or shape[0] != "N"


@pytest.mark.parametrize(
    ("size", "attributes", "known"),
    [
        (7, "pads=[1,1,1,1], strides=[2,2], kernel_shape=[2,2]", False),
        (6, "pads=[1,1,1,1], strides=[2,2], kernel_shape=[2,2]", True),
        (6, "strides=[3,3], kernel_shape=[2,2]", False),
        (6, "strides=[2,2], kernel_shape=[3,3]", True),
    ],
)
@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_pools_count_no_window_behind_the_image(
    op: str, size: int, attributes: str, *, known: bool
) -> None:
    signature = f"g (float[N,2,{size},{size}] x) => (float[a,b,c,d] y)"
    model = parse(
        f"{signature} {{ r = Relu(x) p = {op}<ceil_mode=1, {attributes}>(r) y = Neg(p) }}"
    )
    graph = Graph.load(model)
    [found] = run_model(model, random_inputs(model))
    sizes = found.shape[2:] if known else (None, None)
    assert graph.shape("y") == ("N", 2, *sizes)
