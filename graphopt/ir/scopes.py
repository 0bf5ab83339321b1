"""The register of a graph: which tensors there are, and which scope holds each node.

A scope is the main graph or the body of an If, Loop or Scan. Nodes are kept by identity, because
graphsurgeon compares them by value, attribute by attribute.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_graphsurgeon as gs

from graphopt.errors import EditError
from graphopt.ir.convert import copy_scope, values_of
from graphopt.ir.reading import Array

__all__ = ["Scopes", "bodies"]


def bodies(node: gs.Node) -> Iterator[gs.Graph]:
    """The bodies that a control-flow node carries."""
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield value


class Scopes:
    """Tensors by name, nodes by identity, scopes by nesting."""

    def __init__(
        self, top: gs.Graph, arrays: Mapping[str, Array], overridable: Collection[str] = ()
    ) -> None:
        """Register a scope; `arrays` are the values of its constants that were read apart."""
        self.top = top
        self.tensors: dict[str, gs.Tensor] = {}
        self.defaults: dict[str, Array] = {}
        self._scope: dict[int, gs.Graph] = {}
        self._rank: dict[int, tuple[float, int]] = {}
        self._parent: dict[int, gs.Graph] = {}
        self._owner: dict[int, gs.Node] = {}
        self._unsorted: dict[int, gs.Graph] = {}
        self._bodies: dict[int, gs.Graph] = {}
        self._returned: set[str] = set()  # names of outputs survive every edit
        self._entered: set[str] = set()
        self._nodes: Counter[str] = Counter()  # names of nodes
        self._ticket = itertools.count()
        self._counters: dict[str, int] = {}
        self._register(top)
        for name, array in arrays.items():
            if name in self.tensors:
                self.tensors[name].values = array
        for name in overridable:
            tensor = self.tensors[name]
            self.defaults[name] = values_of(tensor)
            tensor.to_variable(self.defaults[name].dtype, list(self.defaults[name].shape))
            tensor.type = "tensor_type"  # which to_variable forgets

    def _register(self, scope: gs.Graph) -> None:
        self._bodies[id(scope)] = scope
        self._entered.update(tensor.name for tensor in scope.inputs)
        self._returned.update(tensor.name for tensor in scope.outputs)
        for tensor in (*scope.inputs, *scope.outputs):
            self.tensors[tensor.name] = tensor
        for node in scope.nodes:
            self._enter(node, scope, float(next(self._ticket)))

    def _enter(self, node: gs.Node, scope: gs.Graph, rank: float) -> None:
        self._scope[id(node)] = scope
        self._rank[id(node)] = (rank, next(self._ticket))
        self._nodes[node.name] += 1
        for tensor in (*node.inputs, *node.outputs):
            if tensor.name:
                self.tensors[tensor.name] = tensor
        for body in bodies(node):
            self._parent[id(body)] = scope
            self._owner[id(body)] = node
            self._register(body)

    def copy(self) -> Scopes:
        """A register of its own over copied nodes and tensors; arrays are shared."""
        tensors: dict[str, gs.Tensor] = {}
        self._sort_all()
        other = Scopes(copy_scope(self.top, tensors), {})
        other.defaults = dict(self.defaults)
        other._counters = dict(self._counters)
        return other

    # ---- reading -------------------------------------------------------------------------

    def of(self, node: gs.Node) -> gs.Graph:
        scope = self._scope.get(id(node))
        if scope is None:
            raise EditError(f"node {node.name!r} ({node.op}) is not in this graph")
        return scope

    def holds(self, node: gs.Node) -> bool:
        return id(node) in self._scope

    def owner(self, scope: gs.Graph) -> gs.Node | None:
        """The node whose body a scope is; None for the main scope."""
        return self._owner.get(id(scope))

    def rank(self, node: gs.Node) -> float:
        return self._rank[id(node)][0]

    def walk(self) -> Iterator[gs.Graph]:
        """The main scope and every body, outer before inner."""
        yield from list(self._bodies.values())

    def nodes(self, scope: gs.Graph) -> list[gs.Node]:
        """A scope's nodes in topological order."""
        if self._unsorted.pop(id(scope), None) is not None:
            self._sort(scope)
        nodes: list[gs.Node] = scope.nodes
        return nodes

    def is_output(self, name: str) -> bool:
        return name in self._returned

    def is_input(self, name: str) -> bool:
        return name in self._entered

    def fresh(self, hint: str) -> str:
        number = self._counters.get(hint, 0)
        name = hint if number == 0 else f"{hint}_{number}"
        while not name or name in self.tensors:
            number += 1
            name = f"{hint}_{number}"
        self._counters[hint] = number + 1
        return name

    def fresh_node(self, hint: str) -> str:
        """A name that no node has: ONNX Runtime takes no two nodes of one name."""
        name, number = hint, 0
        while self._nodes[name]:
            number += 1
            name = f"{hint}_{number}"
        return name

    def placement(self) -> dict[int, list[gs.Constant]]:
        """Constants by the scope (its id) that is innermost around all who read them."""
        places: dict[int, list[gs.Constant]] = {}
        returned = {
            tensor.name: scope for scope in self.walk() for tensor in scope.outputs
        }  # at most one scope returns a tensor, for names are unique
        for name, tensor in sorted(self.tensors.items()):
            if not isinstance(tensor, gs.Constant):
                continue
            readers = [self._scope[id(node)] for node in tensor.outputs]
            if name in returned:
                readers.append(returned[name])
            if readers:
                places.setdefault(id(self._common(readers)), []).append(tensor)
        return places

    def _common(self, scopes: Sequence[gs.Graph]) -> gs.Graph:
        if not self._parent:
            return self.top
        chains = [self._chain(scope) for scope in scopes]
        common = self.top
        for level in zip(*chains, strict=False):
            if any(scope is not level[0] for scope in level):
                break
            common = level[0]
        return common

    def _chain(self, scope: gs.Graph) -> list[gs.Graph]:
        chain = [scope]
        while chain[-1] is not self.top:
            chain.append(self._parent[id(chain[-1])])
        return chain[::-1]

    # ---- changing (only editing.py does) ---------------------------------------------------

    def add(self, node: gs.Node, scope: gs.Graph, rank: float) -> None:
        scope.nodes.append(node)
        self._enter(node, scope, rank)
        self._unsorted[id(scope)] = scope

    def remove(self, node: gs.Node) -> None:
        """Forget a node and cut its links; its tensors stay until they are dropped."""
        scope = self._scope.pop(id(node))
        self._rank.pop(id(node))
        self._nodes[node.name] -= 1
        for tensor in node.inputs:
            _drop_use(tensor.outputs, node)
        for tensor in node.outputs:
            _drop_use(tensor.inputs, node)
        for body in bodies(node):
            for inner in list(self.nodes(body)):
                self.remove(inner)
            self._bodies.pop(id(body))
            self._unsorted.pop(id(body), None)
            self._entered.difference_update(tensor.name for tensor in body.inputs)
            self._returned.difference_update(tensor.name for tensor in body.outputs)
            self._parent.pop(id(body))
            self._owner.pop(id(body))
        self._unsorted[id(scope)] = scope

    def forget(self, name: str) -> None:
        """Drop a tensor that nothing reads, produces or returns any more."""
        self.tensors.pop(name, None)

    def rename(self, tensor: gs.Tensor, name: str) -> None:
        self.tensors.pop(tensor.name, None)
        tensor.name = name
        self.tensors[name] = tensor

    def expose(self, names: Sequence[str]) -> None:
        """Make the main scope return these tensors instead of what it did."""
        made = {tensor.name for node in self.top.nodes for tensor in node.outputs}
        for name in names:
            if not name or name not in made:
                raise EditError(f"outputs: no node of the main scope computes {name!r}")
        self._returned.difference_update(tensor.name for tensor in self.top.outputs)
        self.top.outputs = [self.tensors[name] for name in names]
        self._returned.update(names)

    def _sort_all(self) -> None:
        for scope in list(self._unsorted.values()):
            self._unsorted.pop(id(scope), None)
            self._sort(scope)

    def _sort(self, scope: gs.Graph) -> None:
        """Topological order, nodes as near to where they stood as their inputs allow."""
        nodes = [node for node in scope.nodes if self._scope.get(id(node)) is scope]
        nodes.sort(key=lambda node: self._rank[id(node)])
        waiting: dict[int, int] = {}
        followers: dict[int, list[gs.Node]] = {}
        for node in nodes:
            makers = {id(maker): maker for maker in self._makers(node, scope) if maker is not node}
            waiting[id(node)] = len(makers)
            for key in makers:
                followers.setdefault(key, []).append(node)
        ready = [(self._rank[id(node)], node) for node in nodes if not waiting[id(node)]]
        heap = [(rank, id(node)) for rank, node in ready]
        by_id = {id(node): node for node in nodes}
        heapq.heapify(heap)
        ordered = []
        while heap:
            node = by_id[heapq.heappop(heap)[1]]
            ordered.append(node)
            for follower in followers.get(id(node), ()):
                waiting[id(follower)] -= 1
                if not waiting[id(follower)]:
                    heapq.heappush(heap, (self._rank[id(follower)], id(follower)))
        if len(ordered) != len(nodes):
            stuck = next(node for node in nodes if waiting[id(node)])
            raise EditError(f"node {stuck.name!r} ({stuck.op}) has come to depend on itself")
        scope.nodes = ordered

    def _makers(self, node: gs.Node, scope: gs.Graph) -> Iterator[gs.Node]:
        """Nodes of `scope` that a node, or a body inside it, reads from."""
        for tensor in node.inputs:
            yield from (maker for maker in tensor.inputs if self._scope[id(maker)] is scope)
        for body in bodies(node):
            for inner in body.nodes:
                if self._scope.get(id(inner)) is body:
                    yield from self._makers(inner, scope)


def _drop_use(nodes: list[gs.Node], gone: gs.Node) -> None:
    """Take one entry that *is* `gone` out of a tensor's list, without its synchronisation."""
    place = next((place for place, node in enumerate(nodes) if node is gone), None)
    if place is not None:
        list.__delitem__(nodes, place)
