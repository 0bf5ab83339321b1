"""The driver applies rules until none applies, keeps refusals, stops what never settles."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from graphopt.errors import EditError
from graphopt.ir import Edit, Graph, NewNode
from graphopt.rewrite import Refusal, rewrite
from tests.asserting import operators, parse


def _graph() -> Graph:
    return Graph.load(
        parse(
            """g (float[2] x) => (float[2] y, float[2] z) {
                a = Neg(x)
                b = Neg(a)
                c = Neg(b)
                d = Neg(c)
                y = Relu(d)
                z = Exp(b)
            }"""
        )
    )


def _cancel(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replaces -(-x) with x."""
    before = graph.producer(node.inputs[0].name)
    if before is None or before.op != "Neg":
        return None
    if len(graph.consumers(before.outputs[0].name)) > 1:
        return Refusal("cancel", node.name, "the inner Neg has other readers")
    return Edit(remove=(node, before), replace={node.outputs[0].name: before.inputs[0].name})


def _swap(graph: Graph, node: gs.Node) -> Edit:
    """Replaces a node with itself, for ever."""
    inputs = tuple(tensor.name for tensor in node.inputs)
    outputs = tuple(tensor.name for tensor in node.outputs)
    return Edit(remove=(node,), add=(NewNode(node.op, inputs, outputs),))


def test_rules_are_applied_until_none_applies() -> None:
    graph = _graph()
    log = rewrite(graph, {"Neg": (_cancel,)})
    assert operators(graph) == ["Relu", "Exp"]
    assert log.applied == {"_cancel": 2}


def test_refusals_carry_their_reason() -> None:
    graph = Graph.load(
        parse("g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x) y = Neg(a) z = Exp(a) }")
    )
    log = rewrite(graph, {"Neg": (_cancel,)})
    assert [refusal.reason for refusal in log.refusals] == ["the inner Neg has other readers"]
    assert not log.applied


def test_rules_that_never_settle_are_stopped() -> None:
    with pytest.raises(EditError, match=r"no end after \d+ edits, last by _swap"):
        rewrite(_graph(), {"Neg": (_swap,)})


def test_operators_of_other_domains_are_not_meant() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.node[0].domain = "other"
    model.opset_import.add(domain="other", version=1)
    assert rewrite(Graph.load(model), {"Neg": (_swap,)}).applied == {}


def test_old_operator_sets_are_left_alone() -> None:
    """Before operator set 7, broadcasting was something else."""
    graph = Graph.load(parse("g (float[2] x) => (float[2] y) { a = Neg(x) y = Neg(a) }", opset=6))
    log = rewrite(graph, {"Neg": (_cancel,)})
    assert operators(graph) == ["Neg", "Neg"]
    assert "operator set 6 is too old" in log.refusals[0].reason
