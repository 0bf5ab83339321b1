"""The graph answers by name, edits are checked before they are made, clones are independent."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import EditError, ModelError
from graphopt.ir import Edit, Graph, NewNode
from tests.asserting import assert_same_outputs, assert_valid, canonical, operators, parse
from tests.samples import convnet

BRANCHES = """g (float[2] x, bool c) => (float[2] y) {
    t = Neg(x)
    y = If (c) <
        then_branch = a () => (float[2] r) { s = Relu(t) r = Add(s, x) },
        else_branch = b () => (float[2] r) { s = Exp(t) r = Mul(s, s) }
    >
}"""


@pytest.fixture
def graph() -> Graph:
    return Graph.load(convnet())


def test_questions_by_name(graph: Graph) -> None:
    assert graph.inputs == ("x",)
    assert graph.outputs == ("y",)
    producer = graph.producer("r")
    assert producer is not None
    assert producer.op == "Relu"
    assert [node.op for node in graph.consumers("a")] == ["Identity"]
    assert graph.shape("p") == ("N", 8, 1, 1)
    assert graph.shape("w") == (8, 3, 3, 3)
    assert graph.dtype("r") == np.float32
    assert graph.constant("b") is not None
    assert graph.constant("r") is None
    assert graph.fresh("r") not in graph
    assert graph.fresh("r") != graph.fresh("r")


def test_bodies_have_unique_names_and_share_outer_tensors() -> None:
    model = parse(BRANCHES)
    graph = Graph.load(model)
    names = [tensor.name for node in graph.all_nodes() for tensor in node.outputs]
    assert len(names) == len(set(names))
    assert sorted(node.op for node in graph.consumers("t")) == ["Exp", "Relu"]
    assert_valid(graph)
    for condition in (True, False):
        feeds = {"x": np.array([1, -2], np.float32), "c": np.array(condition)}
        assert_same_outputs(model, graph.clone(), tolerance=0, feeds=feeds)


def test_edit_inside_a_body() -> None:
    graph = Graph.load(parse(BRANCHES))
    (relu,) = (node for node in graph.all_nodes() if node.op == "Relu")
    source, target = relu.inputs[0].name, relu.outputs[0].name
    graph.apply(Edit(remove=(relu,), add=(NewNode("Abs", (source,), (target,)),)))
    assert_valid(graph)
    (new,) = (node for node in graph.all_nodes() if node.op == "Abs")
    assert graph.scope_of(new) is not graph.scope_of(graph.nodes[0])


def test_clone_is_independent_and_shares_weights(graph: Graph) -> None:
    copy = graph.clone()
    assert copy.fingerprint() == graph.fingerprint()
    assert copy.constant("w") is graph.constant("w")
    identity = next(node for node in copy.nodes if node.op == "Identity")
    copy.apply(Edit(remove=(identity,), replace={"i": "a"}))
    copy.set_constant("b", np.ones(8, np.float32))
    assert "Identity" in operators(graph)
    assert graph.fingerprint() != copy.fingerprint()
    assert not np.array_equal(graph.constant("b"), copy.constant("b"))  # type: ignore[arg-type]


def test_content_hash_sees_every_weight(graph: Graph) -> None:
    same = Graph.load(convnet())
    assert same.content_hash() == graph.content_hash()
    changed = graph.constant("w")
    assert changed is not None
    changed = changed.copy()
    changed[0, 0, 0, 0] += 1
    same.set_constant("w", changed)
    assert same.content_hash() != graph.content_hash()


def test_output_keeps_its_name_when_its_producer_changes() -> None:
    graph = Graph.load(parse("g (float[2] x) => (float[2] y) { a = Relu(x) y = Identity(a) }"))
    (identity,) = (node for node in graph.nodes if node.op == "Identity")
    assert graph.can_replace("y", "a")
    graph.apply(Edit(remove=(identity,), replace={"y": "a"}))
    assert graph.outputs == ("y",)
    assert operators(graph) == ["Relu"]
    assert_valid(graph)


def test_output_cannot_become_an_input() -> None:
    graph = Graph.load(parse("g (float[2] x) => (float[2] y) { y = Identity(x) }"))
    assert not graph.can_replace("y", "x")
    with pytest.raises(EditError, match="cannot take the place"):
        graph.apply(Edit(remove=(graph.nodes[0],), replace={"y": "x"}))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda g: Edit(remove=(g.producer("r"),)), "'r' is still read"),
        (lambda g: Edit(remove=(g.producer("y"),)), "'y' is still read"),
        (lambda g: Edit(add=(NewNode("Relu", ("none",), ("q",)),)), "reads 'none'"),
        (lambda g: Edit(add=(NewNode("Relu", ("x",), ("r",)),)), "'r' would be produced twice"),
        (lambda g: Edit(replace={"r": "none"}), "which is not there"),
        (lambda g: Edit(constants={"r": np.zeros(1)}), "no constant"),
    ],
)
def test_refused_edit_changes_nothing(graph: Graph, edit: object, message: str) -> None:
    before = graph.fingerprint()
    with pytest.raises(EditError, match=message):
        graph.apply(edit(graph))  # type: ignore[operator]
    assert graph.fingerprint() == before
    assert_valid(graph)


def test_edit_that_makes_a_cycle_is_seen() -> None:
    graph = Graph.load(
        parse("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) y = Exp(b) }")
    )
    relu = graph.nodes[0]
    graph.apply(Edit(remove=(relu,), add=(NewNode("Relu", ("b",), ("a",)),)))
    with pytest.raises((EditError, ModelError), match=r"itself|cycle"):
        graph.verify()


def test_new_nodes_stand_where_the_old_ones_stood(graph: Graph) -> None:
    relu = next(node for node in graph.nodes if node.op == "Relu")
    new = (NewNode("Neg", ("i",), ("n",)), NewNode("Abs", ("n",), ("r",)))
    graph.apply(Edit(remove=(relu,), add=new))
    assert operators(graph)[2:4] == ["Neg", "Abs"]
    assert graph.shape("n") == ("N", 8, 8, 8)


def test_computed_tensor_becomes_a_constant() -> None:
    graph = Graph.load(
        parse("g (float[2] x) => (float[2] y) <float[2] w> { a = Neg(w) y = Add(x, a) }")
    )
    negation = graph.nodes[0]
    graph.apply(Edit(remove=(negation,), constants={"a": np.array([1, 2], np.float32)}))
    assert operators(graph) == ["Add"]
    assert set(graph.constants()) == {"a"}
    assert_valid(graph)


def test_prune_drops_what_reaches_no_output() -> None:
    graph = Graph.load(
        parse("g (float[2] x) => (float[2] y) { a = Neg(x) b = Exp(a) y = Relu(x) }")
    )
    assert operators(graph) == ["Relu"]


def test_verify_names_the_node(graph: Graph) -> None:
    graph.set_attribute(graph.nodes[0], "strands", [1])
    with pytest.raises(ModelError, match=r"Conv node.*strands"):
        graph.verify()


def test_unsorted_nodes_are_sorted() -> None:
    model = convnet()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert operators(Graph.load(model)) == operators(Graph.load(convnet()))


def test_functions_survive() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        g (float[2] x) => (float[2] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }"""
    )
    graph = Graph.load(model)
    assert graph.functions == ("twice",)
    assert_same_outputs(model, graph, tolerance=0)


def test_canonical_ignores_names() -> None:
    one = parse("g (float[2] x) => (float[2] y) { a = Neg(x) y = Exp(a) }")
    other = parse("g (float[2] x) => (float[2] y) { b = Neg(x) y = Exp(b) }")
    assert canonical(one) == canonical(other)


def test_other_outputs_leave_only_what_they_need(graph: Graph) -> None:
    part = graph.with_outputs(["r", "a"])
    assert part.outputs == ("r", "a")
    assert [node.op for node in part.nodes] == ["Conv", "Identity", "Relu"]
    assert part.constant("w") is graph.constant("w")
    assert_valid(part)
    assert graph.outputs == ("y",)
    assert len(graph.nodes) == 6
    assert part.clone().outputs == ("r", "a")
    with pytest.raises(EditError, match="no node of the main scope computes 's'"):
        Graph.load(parse(BRANCHES)).with_outputs(["s"])


def test_overloads_of_functions_are_refused() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.node[0].overload = "other"
    with pytest.raises(ModelError, match="overload 'other'"):
        Graph.load(model)


def test_no_two_nodes_get_one_name() -> None:
    graph = Graph.load(parse("g (float[2] x) => (float[2] y) { t = Neg(x) y = Abs(t) }"))
    [first, second] = graph.nodes
    graph.apply(Edit((first,), (NewNode("Exp", ("x",), ("t",), name="y"),)))
    graph.apply(Edit((second,), (NewNode("Relu", ("t",), ("y",)),)))
    assert [node.name for node in graph.nodes] == ["y", "y_1"]
    assert_valid(graph)


def test_a_graph_shows_what_it_is() -> None:
    text = "t (float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Neg(a) }"
    assert repr(Graph.load(parse(text))) == "<Graph of 2 nodes: x -> y>"
