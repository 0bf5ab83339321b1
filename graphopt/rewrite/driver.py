"""Rewrite a graph by rules until no rule finds anything more.

A rule looks at one node and decides: an Edit (plain data, applied by the graph), a Refusal (it was
nearly the pattern, but rewriting it would not be exact, and this is why), or None (not mine).
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.errors import EditError
from graphopt.ir import Edit, Graph

__all__ = ["Refusal", "RewriteLog", "Rule", "rewrite"]

_LOG = logging.getLogger(__name__)

_LEAST_OPSET = 7
"""Before this operator set broadcasting was an attribute, and ONNX Runtime checks next to none."""

_EDITS_PER_NODE = 20
"""No sound set of rules edits a graph more often than this; beyond it two rules undo each other."""


_FEW_READERS = 8
"""A constant or input that more nodes read does not become anyone's own by losing a reader."""


@dataclass(frozen=True)
class Refusal:
    """A pattern that was recognised and left alone, with the reason."""

    rule: str
    node: str
    reason: str


Rule = Callable[[Graph, gs.Node], Edit | Refusal | None]


@dataclass(frozen=True)
class RewriteLog:
    """How often each rule was applied, and what was refused in the end."""

    applied: Mapping[str, int]
    refusals: tuple[Refusal, ...]


def rewrite(graph: Graph, rules: Mapping[str, Sequence[Rule]]) -> RewriteLog:
    """Apply rules to every node of every scope until none applies.

    `rules` are keyed by operator: "Conv", or "com.microsoft::Gelu" outside the standard domain.
    Nodes around an edit are looked at again. Raises EditError if the rules do not settle.
    """
    if graph.opset < _LEAST_OPSET:
        why = f"operator set {graph.opset} is too old; convert the model to {_LEAST_OPSET} or newer"
        return RewriteLog({}, (Refusal("rewrite", "every node", why),))
    waiting = deque(graph.all_nodes())
    queued = {id(node) for node in waiting}
    limit = 100 + _EDITS_PER_NODE * len(waiting)
    applied: Counter[str] = Counter()
    refusals: dict[tuple[str, str], Refusal] = {}
    while waiting:
        node = waiting.popleft()
        queued.discard(id(node))
        for rule in rules.get(_key(node), ()):
            if not graph.holds(node):
                break
            found = rule(graph, node)
            if isinstance(found, Refusal):
                refusals[found.rule, found.node] = found
                continue
            if found is None:
                continue
            around = _apply(graph, found)
            _LOG.debug("%s at %s (%s)", rule.__name__, node.name, node.op)
            applied[rule.__name__] += 1
            if applied.total() > limit:
                raise EditError(f"rewrite: no end after {limit} edits, last by {rule.__name__}")
            for neighbour in around:
                if id(neighbour) not in queued:
                    queued.add(id(neighbour))
                    waiting.append(neighbour)
            break
    return RewriteLog(dict(applied), tuple(refusals.values()))


def _key(node: gs.Node) -> str:
    standard = node.domain in (None, "", "ai.onnx")
    return str(node.op) if standard else f"{node.domain}::{node.op}"


def _apply(graph: Graph, edit: Edit) -> list[gs.Node]:
    """Apply an edit; return the nodes that may match something now."""
    read = {tensor.name for node in edit.remove for tensor in node.inputs if tensor.name}
    made = {name for node in edit.add for name in node.outputs if name}
    written = {tensor.name for node in edit.remove for tensor in node.outputs if tensor.name}
    graph.apply(edit)
    touched = read | made | written | set(edit.replace) | set(edit.replace.values())
    return list(_around(graph, touched, edit.constants.keys()))


def _around(graph: Graph, touched: Set[str], changed: Set[str]) -> Iterator[gs.Node]:
    for name in sorted(touched | changed):
        if name not in graph:
            continue
        producer, readers = graph.producer(name), graph.consumers(name)
        if producer is not None:
            yield producer
        if producer is not None or name in changed or len(readers) <= _FEW_READERS:
            yield from readers
