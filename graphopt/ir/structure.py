"""Check and straighten a model's structure while it is still a protobuf message.

What graphsurgeon would import wrongly or lose is settled here: names become unique over the whole
model, nodes come in topological order, and what cannot be carried is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx

from graphopt.errors import ModelError

__all__ = ["check_nodes", "count_nodes", "rename_values", "straighten", "subgraphs"]

_Attr = onnx.AttributeProto
_LOST_ATTRIBUTES = {
    _Attr.TYPE_PROTO: "a type",
    _Attr.TYPE_PROTOS: "types",
    _Attr.TENSORS: "a list of tensors",
    _Attr.GRAPHS: "a list of graphs",
    _Attr.SPARSE_TENSOR: "a sparse tensor",
    _Attr.SPARSE_TENSORS: "sparse tensors",
}
_OVERRIDABLE_SINCE_IR = 4
"""From this IR version on an initializer need not be listed among the graph inputs."""


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies that a control-flow node carries."""
    for attribute in node.attribute:
        if attribute.type == _Attr.GRAPH:
            yield attribute.g


def count_nodes(graph: onnx.GraphProto) -> int:
    """Nodes of a graph and of its bodies, Constant nodes left out."""
    own = sum(node.op_type != "Constant" for node in graph.node)
    return own + sum(count_nodes(body) for node in graph.node for body in subgraphs(node))


def straighten(model: onnx.ModelProto) -> set[str]:
    """Make the model fit for import, in place; return the initializers that callers may override.

    Raises ModelError for what no graph can be (a cycle, a missing input, a name defined twice)
    and for what graphsurgeon cannot carry (Optional types, attributes holding types).
    """
    if not model.graph.output:
        raise ModelError("the model: the graph has no outputs, so there is nothing to keep")
    _refuse_unsupported(model.graph)
    overridable = _initializers_as_inputs(model)
    _constants_as_initializers(model.graph)
    _unique_names(model.graph, Counter())
    _check_scope(model.graph, frozenset())
    return overridable


def _describe(node: onnx.NodeProto) -> str:
    return f"{node.op_type} node {node.name or (node.output[0] if node.output else '?')!r}"


def _refuse_unsupported(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.HasField("optional_type") or info.type.HasField("map_type"):
            kind = "Optional" if info.type.HasField("optional_type") else "Map"
            raise ModelError(f"tensor {info.name!r}: {kind} types are not supported; left alone")
    for node in graph.node:
        if node.overload:
            raise ModelError(
                f"{_describe(node)}: calls the overload {node.overload!r} of a function, which is "
                "not supported; left alone"
            )
        for attribute in node.attribute:
            if attribute.type in _LOST_ATTRIBUTES:
                raise ModelError(
                    f"{_describe(node)}: attribute {attribute.name!r} holds "
                    f"{_LOST_ATTRIBUTES[attribute.type]}, which is not supported; left alone"
                )
        for body in subgraphs(node):
            _refuse_unsupported(body)


def _initializers_as_inputs(model: onnx.ModelProto) -> set[str]:
    """Drop initializers from the graph inputs where that is only an exporter's habit.

    Before IR version 4 every initializer had to be listed; some exporters list them all to this
    day. A file that lists only some of them offers default values: those stay overridable.
    """
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    listed = {info.name for info in graph.input} & initializers
    if model.ir_version >= _OVERRIDABLE_SINCE_IR and listed != initializers:
        return listed
    kept = [info for info in graph.input if info.name not in initializers]
    del graph.input[:]
    graph.input.extend(kept)
    model.ir_version = max(model.ir_version, _OVERRIDABLE_SINCE_IR)
    return set()


def _constants_as_initializers(graph: onnx.GraphProto) -> None:
    """Store what Constant nodes hold as initializers, unless an output would lose its producer."""
    taken = {info.name for info in graph.output} | {tensor.name for tensor in graph.initializer}
    places = []
    for place, node in enumerate(graph.node):
        for body in subgraphs(node):
            _constants_as_initializers(body)
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        held = [entry.t for entry in node.attribute if entry.name == "value"]
        if held and node.output[0] not in taken:
            taken.add(node.output[0])
            graph.initializer.append(held[0])
            graph.initializer[-1].name = node.output[0]
            places.append(place)
    for place in reversed(places):
        del graph.node[place]


def _unique_names(graph: onnx.GraphProto, seen: Counter[str]) -> None:
    """Rename what sibling subgraphs call alike: names are unique only along one path in ONNX."""
    for name in _definitions(graph):
        seen[name] += 1
    for node in graph.node:
        for body in subgraphs(node):
            clashes = {name for name in _definitions(body) if name and seen[name]}
            if clashes:
                taken = set(seen) | set(_all_definitions(body))
                _rename(body, {name: _unused(name, taken) for name in sorted(clashes)})
            _unique_names(body, seen)


def _unused(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"


def _definitions(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that a scope defines, each as often as it is defined (0-length names are no names)."""
    initializers = {tensor.name for tensor in graph.initializer}
    initializers |= {tensor.values.name for tensor in graph.sparse_initializer}
    yield from initializers
    yield from (info.name for info in graph.input if info.name not in initializers)
    yield from (name for node in graph.node for name in node.output if name)


def _all_definitions(graph: onnx.GraphProto) -> Iterator[str]:
    yield from _definitions(graph)
    for node in graph.node:
        for body in subgraphs(node):
            yield from _all_definitions(body)


def rename_values(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give values other names; what has one of these names already gets one of its own."""
    taken = set(_all_definitions(graph))
    clashes = taken & set(names.values()) - names.keys()
    taken.update(names.values())
    _rename(graph, {**names, **{name: _unused(name, taken) for name in sorted(clashes)}})


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        for value in values:
            value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for body in subgraphs(node):
            shadowed = set(_definitions(body))
            _rename(body, {old: new for old, new in names.items() if old not in shadowed})


def _check_scope(graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    counts = Counter(_definitions(graph))
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ModelError(f"tensor {twice[0]!r}: defined {counts[twice[0]]} times; export it again")
    known = outer | counts.keys()
    for node in graph.node:
        for name in _reads(node):
            if name and name not in known:
                raise ModelError(
                    f"{_describe(node)}: input {name!r} is produced nowhere in the graph"
                )
    for info in graph.output:
        if info.name not in known:
            raise ModelError(f"graph output {info.name!r}: produced nowhere in the graph")
    _sort(graph)
    for node in graph.node:
        for body in subgraphs(node):
            _pass_through(body, known)
            _check_scope(body, known)


def _pass_through(body: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Give a body that returns an outer value an Identity, as the specification demands."""
    local = set(_definitions(body))
    for info in body.output:
        if info.name not in local and info.name in outer:
            inner = _unused(info.name, set(outer) | set(_all_definitions(body)))
            body.node.add(op_type="Identity", input=[info.name], output=[inner])
            info.name = inner


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Every tensor of this scope or of an outer one that a node needs, its bodies included."""
    yield from node.input
    for body in subgraphs(node):
        local = set(_definitions(body))
        inner = (name for child in body.node for name in _reads(child))
        yield from (name for name in inner if name not in local)
        yield from (info.name for info in body.output if info.name not in local)


def _sort(graph: onnx.GraphProto) -> None:
    """Bring nodes into topological order; their given order decides between equals."""
    ready: set[str] = set()
    made = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if any(name in made and name not in ready for name in _reads(node)):
            break
        ready.update(node.output)
    else:
        return
    import networkx as nx  # only for files out of order, and it takes a tenth of a second

    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    order: nx.DiGraph[int] = nx.DiGraph()
    order.add_nodes_from(range(len(graph.node)))
    for index, node in enumerate(graph.node):
        order.add_edges_from((maker[name], index) for name in _reads(node) if name in maker)
    try:
        indices = list(nx.lexicographical_topological_sort(order))
    except nx.NetworkXUnfeasible as error:
        cycle = nx.find_cycle(order)
        around = _describe(graph.node[cycle[0][0]])
        raise ModelError(f"{around}: the graph has a cycle of {len(cycle)} nodes") from error
    nodes = [graph.node[index] for index in indices]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def check_nodes(model: onnx.ModelProto) -> None:
    """Let ONNX's checker judge each node of every scope."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in model.opset_import}
    _check_scope_nodes(model.graph, context)


def _check_scope_nodes(graph: onnx.GraphProto, context: onnx.checker.C.CheckerContext) -> None:
    for node in graph.node:
        inner = list(subgraphs(node))
        for body in inner:
            _check_scope_nodes(body, context)
        if inner or node.domain not in ("", "ai.onnx"):
            continue  # the checker would want to see the outer scope of a body
        if not onnx.defs.has(node.op_type, context.opset_imports.get("", 1)):
            continue  # newer than the onnx package, or of one runtime's own: carried as it is
        try:
            onnx.checker.check_node(node, context)
        except onnx.checker.ValidationError as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{_describe(node)}: {reason}") from error
