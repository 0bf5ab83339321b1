"""Islands: sets of tensors that can change the order of their axes together.

The nodes between an island's tensors follow any order (graphopt.rewrite.layouts); at its border
stand Transposes, which a change of order may make superfluous, and other nodes, which need the
old order back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.rewrite.layouts import Change, Move, Order, inverse, movement, then
from graphopt.rewrite.matching import is_op

__all__ = ["Island", "Reordering", "islands", "order_of", "reorder"]


@dataclass(frozen=True)
class Island:
    """Tensors that are bound to one order, and the nodes that bind them, as the graph has them."""

    tensors: frozenset[str]
    nodes: tuple[gs.Node, ...]
    moves: Mapping[int, Move]
    """By the id of a node."""
    entries: tuple[gs.Node, ...]
    """Transposes that make a tensor of the island."""
    exits: tuple[gs.Node, ...]
    """Transposes that read one."""


@dataclass(frozen=True)
class Reordering:
    """An edit, by how much it changes the number of Transposes, and of elements they move."""

    edit: Edit
    count: int
    elements: int


def order_of(graph: Graph, node: gs.Node) -> Order | None:
    """The permutation of a Transpose."""
    shape = graph.shape(node.inputs[0].name)
    given = node.attrs.get("perm")
    if given is not None:
        return tuple(int(axis) for axis in given)
    return None if shape is None else tuple(range(len(shape)))[::-1]


def islands(graph: Graph) -> list[Island]:
    """Every island with a Transpose at its border."""
    return [island for scope in _scopes(graph) for island in _of_scope(graph, scope)]


def _scopes(graph: Graph) -> list[list[gs.Node]]:
    by_scope: dict[int, list[gs.Node]] = {}
    for node in graph.all_nodes():
        by_scope.setdefault(id(graph.scope_of(node)), []).append(node)
    return list(by_scope.values())


def _of_scope(graph: Graph, nodes: Sequence[gs.Node]) -> Iterator[Island]:
    transposes = [node for node in nodes if is_op(node, "Transpose")]
    ranks = {len(order) for node in transposes if (order := order_of(graph, node)) is not None}
    groups: dict[str, set[str]] = {}
    moves: dict[int, Move] = {}
    bound: list[tuple[gs.Node, str]] = []
    for node in nodes if transposes else ():
        rank = _rank(graph, node)
        move = movement(graph, node, rank) if rank in ranks else None
        names = [] if move is None else _bound(graph, node, move)
        if move is not None and names:
            moves[id(node)] = move
            _bind(groups, names)
            bound.append((node, names[0]))
    for tensors in {id(group): group for group in groups.values()}.values():
        entries = tuple(n for n in transposes if n.outputs[0].name in tensors)
        exits = tuple(n for n in transposes if n.inputs[0].name in tensors)
        if entries or exits:
            inside = tuple(node for node, name in bound if name in tensors)
            yield Island(frozenset(tensors), inside, moves, entries, exits)


def _bind(groups: dict[str, set[str]], names: Sequence[str]) -> None:
    """Put names, and all that are bound to them already, into one group."""
    whole = max((groups.get(name, set()) for name in names), key=len)
    for name in names:
        group = groups.get(name, {name})
        if group is not whole:
            whole |= group
            groups.update(dict.fromkeys(group, whole))


def _rank(graph: Graph, node: gs.Node) -> int | None:
    """The rank of what a node reads and makes, the larger if they differ."""
    if not node.inputs or not node.outputs:
        return None
    shapes = [graph.shape(tensor.name) for tensor in (node.inputs[0], node.outputs[0])]
    known = [len(shape) for shape in shapes if shape is not None]
    return max(known) if len(known) == 2 else None


def _bound(graph: Graph, node: gs.Node, move: Move) -> list[str]:
    """The computed tensors that a node binds to one order."""
    names = [node.inputs[place].name for place in move.tied]
    names = [name for name in names if graph.constant(name) is None]
    return names + [tensor.name for tensor in node.outputs if tensor.name and move.outputs]


@dataclass
class _Plan:
    """What a reordering is made of, while it is being written."""

    graph: Graph
    island: Island
    order: Order
    names: dict[str, str] = field(default_factory=dict)
    """The reordered tensor for each tensor of the island."""
    add: list[NewNode] = field(default_factory=list)
    remove: list[gs.Node] = field(default_factory=list)
    replace: dict[str, str] = field(default_factory=dict)
    count: int = 0
    elements: int = 0

    def transpose(self, source: str, order: Order, output: str, like: str) -> None:
        """Add a Transpose that moves as many elements as `like` has."""
        self.add.append(NewNode("Transpose", (source,), (output,), {"perm": list(order)}))
        self.count += 1
        self.elements += _size(self.graph, like)

    def drop(self, node: gs.Node) -> None:
        self.remove.append(node)
        self.count -= 1
        self.elements -= _size(self.graph, node.inputs[0].name)


def _size(graph: Graph, name: str) -> int:
    """Elements of a tensor, unknown sizes taken as one."""
    return math.prod(dim for dim in graph.shape(name) or () if isinstance(dim, int))


def reorder(graph: Graph, island: Island, order: Order) -> Reordering:
    """The edit that puts all tensors of an island in another order."""
    plan = _Plan(graph, island, order)
    changes = {id(node): island.moves[id(node)].change(order) for node in island.nodes}
    inside = [node for node in island.nodes if changes[id(node)] is not None]
    made = {tensor.name for node in inside for tensor in node.outputs}
    handled = {id(node) for node in (*inside, *island.exits)}
    for name in sorted(island.tensors - made):
        _enter(plan, name, handled)
    for name in sorted(island.tensors & made):
        plan.names[name] = _written_as(plan, name)
    for node in inside:
        change = changes[id(node)]
        assert change is not None, "only nodes that can follow are inside"
        _follow(plan, node, change)
    for node in island.exits:
        _leave(plan, node)
    for name in sorted(island.tensors & made):
        others = [node for node in graph.consumers(name) if id(node) not in handled]
        if others or graph.is_output(name):
            plan.transpose(plan.names[name], inverse(order), name, name)
    edit = Edit(tuple(plan.remove), tuple(plan.add), plan.replace)
    return Reordering(edit, plan.count, plan.elements)


def _enter(plan: _Plan, name: str, handled: set[int]) -> None:
    """A tensor that comes from outside: past its Transpose, or through a new one."""
    graph, maker = plan.graph, plan.graph.producer(name)
    source, order = name, plan.order
    if maker is not None and any(maker is entry for entry in plan.island.entries):
        found = order_of(graph, maker)
        assert found is not None, "an entry has a known rank"
        source, order = maker.inputs[0].name, then(found, plan.order)
        readers = graph.consumers(name)
        if all(id(node) in handled for node in readers) and not graph.is_output(name):
            plan.drop(maker)
    if order == tuple(range(len(order))):
        plan.names[name] = source
        return
    plan.names[name] = _written_as(plan, name)
    plan.transpose(source, order, plan.names[name], name)


def _written_as(plan: _Plan, name: str) -> str:
    """A name for a reordered tensor: that of an exit which it makes superfluous, or a new one."""
    back = inverse(plan.order)
    free = [
        node.outputs[0].name
        for node in plan.island.exits
        if node.inputs[0].name == name and _cancels(plan, node, back)
    ]
    free.sort(key=lambda output: not plan.graph.is_output(output))
    return free[0] if free else plan.graph.fresh(f"{name}_reordered")


def _cancels(plan: _Plan, node: gs.Node, back: Order) -> bool:
    found = order_of(plan.graph, node)
    return found is not None and then(back, found) == tuple(range(len(back)))


def _follow(plan: _Plan, node: gs.Node, change: Change) -> None:
    """A node of the island, on reordered tensors."""
    move = plan.island.moves[id(node)]
    inputs: list[str | Array] = [tensor.name for tensor in node.inputs]
    for place in move.tied:
        value = plan.graph.constant(node.inputs[place].name)
        name = node.inputs[place].name
        inputs[place] = plan.names[name] if value is None else value.transpose(plan.order)
    for place, array in sorted(change.inputs.items()):
        inputs.extend([""] * (place + 1 - len(inputs)))
        inputs[place] = array
    outputs = [tensor.name for tensor in node.outputs]
    if move.outputs:
        outputs = [plan.names[name] if name else "" for name in outputs]
    attrs = {**node.attrs, **change.attrs}
    new = NewNode(node.op, tuple(inputs), tuple(outputs), attrs, node.domain or "", node.name)
    plan.add.append(new)
    plan.remove.append(node)


def _leave(plan: _Plan, node: gs.Node) -> None:
    """A Transpose that reads the island: gone, or another one."""
    graph, output = plan.graph, node.outputs[0].name
    found, source = order_of(graph, node), plan.names[node.inputs[0].name]
    assert found is not None, "an exit has a known rank"
    plan.drop(node)
    rest = then(inverse(plan.order), found)
    if rest != tuple(range(len(rest))):
        plan.transpose(source, rest, output, node.inputs[0].name)
    elif source != output and graph.is_output(output):
        plan.add.append(NewNode("Identity", (source,), (output,)))
    elif source != output:
        plan.replace[output] = source
