"""Parts with one entrance and one exit: found in rows, around shortcuts, and not where none are."""

from __future__ import annotations

import networkx as nx

from graphopt.ir import Graph
from graphopt.quantize.regions import Region, find_regions
from tests.asserting import parse

CONVS = "<float[4,4,1,1] w>"


def graph(body: str, outputs: str = "float[N,4,8,8] y") -> Graph:
    return Graph.load(parse(f"net (float[N,4,8,8] x) => ({outputs}) {CONVS} {{ {body} }}"))


def conv(source: str, target: str) -> str:
    return f"{target} = Conv<kernel_shape=[1,1]>({source}, w)"


def found(network: Graph, layers: str) -> list[Region]:
    return find_regions(network, layers.split(), lambda name: True)


def test_rows_of_layers_are_taken_by_threes() -> None:
    network = graph("\n".join([
        conv("x", "a"), "b = Relu(a)", conv("b", "c"), conv("c", "d"), "e = Relu(d)",
        conv("e", "f"), conv("f", "y"),
    ]))  # fmt: skip
    assert found(network, "a c d f y") == [
        Region(("x",), "d", ("a", "c", "d")), Region(("e",), "y", ("f", "y"))
    ]  # fmt: skip


def test_what_a_shortcut_goes_around_is_one_part() -> None:
    network = graph("\n".join([
        conv("x", "a"), "b = Relu(a)", conv("b", "c"), "d = Relu(c)", conv("d", "e"),
        "f = Add(e, b)", "g = Relu(f)", conv("g", "h"), conv("g", "i"), "j = Add(h, i)",
        "k = MaxPool<kernel_shape=[1,1]>(j)", conv("k", "y"),
    ]))  # fmt: skip
    assert found(network, "a c e h i y") == [
        Region(("b",), "f", ("c", "e")), Region(("g",), "j", ("h", "i"))
    ]  # fmt: skip
    only_relu = find_regions(network, ["c", "e", "h", "i"], lambda name: name in ("b", "g", "k"))
    assert [region.gives for region in only_relu] == ["g", "k"]


def test_every_path_leads_through_the_ends() -> None:
    network = graph("\n".join([
        conv("x", "a"), conv("x", "b"), "c = Add(a, b)", conv("c", "d"), "e = Sigmoid(d)",
        "f = Mul(c, e)", conv("f", "g"), conv("g", "h"), "i = Add(h, f)", conv("i", "y"),
    ]))  # fmt: skip
    regions = found(network, "a b d g h y")
    assert [region.gives for region in regions] == ["c", "i"]
    paths = nx.DiGraph(
        (str(tensor.name), str(node.outputs[0].name))
        for node in network.nodes
        for tensor in node.inputs
        if network.constant(tensor.name) is None
    )
    for region in regions:
        without = paths.copy()
        without.remove_node(region.gives)
        assert not nx.has_path(without, "x", "y")


def test_single_layers_and_networks_with_bodies_have_none() -> None:
    network = graph("\n".join([conv("x", "a"), "b = Relu(a)", "y = Add(b, x)"]))
    assert found(network, "a") == []


def test_behind_an_output_nothing_is_taken_together() -> None:
    network = graph("\n".join([conv("x", "a"), conv("a", "b"), conv("b", "c"), conv("c", "y")]),
                    outputs="float[N,4,8,8] y, float[N,4,8,8] b")  # fmt: skip
    assert found(network, "a b c y") == [Region(("x",), "b", ("a", "b"))]
