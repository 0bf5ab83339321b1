"""Build a torch.fx module from a graph, node by node, by the table of lowerings."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
import torch
from torch import fx, nn

from graphopt.errors import UnsupportedOp
from graphopt.ir import Graph
from graphopt.lens.dtypes import CARRIERS, EXACT, carrier, to_tensor
from graphopt.lens.site import Emitted, Site
from graphopt.lens.table import LOWERINGS
from graphopt.lens.weights import is_float, weight_names

__all__ = ["LoweredModule", "lower"]

_STANDARD = (None, "", "ai.onnx")


class LoweredModule(fx.GraphModule):
    """A graph as a module: inputs by position in the graph's order, one output or a tuple.

    `binding` maps the path of each parameter and float buffer to the name of its initializer.
    """

    @property
    def binding(self) -> dict[str, str]:
        """Kept in `meta`, which copies of an fx module share."""
        binding: dict[str, str] = self.meta["binding"]
        return binding


def lower(graph: Graph) -> LoweredModule:
    """Lower a graph to a module in eval() mode, whose weights are copies of the graph's.

    Raises UnsupportedOp, naming operator and node, where the table has no row.
    """
    given, graph = graph, _expanded(graph)
    tensors = _Tensors(graph, given)
    builder = _Builder(graph, tensors, tensors.root)
    for name in graph.inputs:
        builder.take(name, carried=True)
    builder.emit(graph.nodes)
    module = LoweredModule(tensors.root, builder.finish(graph.outputs, carried=True))
    kept = {path for path, _ in module.named_parameters(remove_duplicate=False)}
    kept |= {path for path, _ in module.named_buffers(remove_duplicate=False)}
    bound = {path: name for path, name in tensors.binding.items() if path in kept}
    module.meta["binding"] = bound
    return module.eval()


def _has_row(node: gs.Node) -> bool:
    return node.domain in _STANDARD and node.op in LOWERINGS


def _expanded(graph: Graph) -> Graph:
    """Replace operators without a row by their definition, where ONNX defines them by others."""
    missing = {(n.domain or "", n.op) for n in graph.all_nodes() if not _has_row(n)}
    wanted = [pair for pair in missing if _is_function(graph, *pair)]
    if not wanted:
        return graph
    model = graph.to_model()
    _spell_defaults(model.graph, graph, wanted)
    try:
        model = onnx.inliner.inline_selected_functions(model, wanted, inline_schema_functions=True)
    except RuntimeError:
        return graph  # the operator is refused where it is met
    return Graph.load(model)


def _spell_defaults(scope: onnx.GraphProto, graph: Graph, wanted: list[tuple[str, str]]) -> None:
    """Write out attributes that nodes leave to their defaults: the inliner does not know them."""
    for node in scope.node:
        for attribute in node.attribute:
            _spell_defaults(attribute.g, graph, wanted)
        if (node.domain, node.op_type) not in wanted or node.op_type in graph.functions:
            continue
        schema = onnx.defs.get_schema(node.op_type, graph.domains[node.domain], node.domain)
        given = {attribute.name for attribute in node.attribute}
        for name, declared in schema.attributes.items():
            default: onnx.AttributeProto = declared.default_value
            if name not in given and default.name:
                node.attribute.append(default)


def _is_function(graph: Graph, domain: str, op: str) -> bool:
    if op in graph.functions:
        return True
    try:
        schema = onnx.defs.get_schema(op, graph.domains.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False
    # The wheel's stubs lack both properties.
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


def _identifier(hint: str, taken: set[str]) -> str:
    """A Python name made from `hint` that is not taken; it is from now on."""
    base = re.sub(r"\W+", "_", hint).strip("_") or "tensor"
    base = f"_{base}" if base[0].isdigit() or keyword.iskeyword(base) else base
    name, count = base, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    taken.add(name)
    return name


class _Tensors:
    """Parameters and buffers by the name of their constant; they all live on the main module."""

    def __init__(self, graph: Graph, given: Graph) -> None:
        """`given` is the graph that was asked for: only its constants are bound and trained."""
        self.root = nn.Module()
        self.graph = graph
        self.given = given
        self.weights = frozenset(n for n in weight_names(graph) if given.constant(n) is not None)
        self.binding: dict[str, str] = {}
        self.paths: dict[str, str] = {}
        self._held: dict[str, torch.Tensor] = {}
        self._taken = set(dir(LoweredModule))

    def free(self, hint: str) -> str:
        """A name for an attribute, made from `hint`."""
        return _identifier(hint, self._taken)

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor of a constant, made when first asked for."""
        array = self.graph.constant(name)
        if array is None or name in self._held:
            return self._held.get(name)
        if carrier(array.dtype) is None:
            raise UnsupportedOp(
                f"trainable view: torch has nothing for the elements of {name!r}, of type "
                f"{array.dtype}; passes that need gradients cannot run on this model"
            )
        tensor = to_tensor(array)
        self._held[name] = nn.Parameter(tensor) if name in self.weights else tensor
        return self._held[name]

    def path(self, name: str) -> str | None:
        """Where the main module keeps a constant; None if `name` is not constant."""
        tensor = self.get(name)
        if tensor is None:
            return None
        if name not in self.paths:
            path = self.free(name)
            if isinstance(tensor, nn.Parameter):
                self.root.register_parameter(path, tensor)
            else:
                self.root.register_buffer(path, tensor)
            self.bind(path, name)
        return self.paths[name]

    def bind(self, path: str, name: str) -> None:
        self.paths.setdefault(name, path)
        array = self.given.constant(name)
        if array is not None and is_float(array):
            self.binding[path] = name


class _Builder:
    """One scope being lowered: the main one, or a body that borrows values from around it."""

    def __init__(self, graph: Graph, tensors: _Tensors, root: nn.Module, *, main: bool = True):
        self.graph = graph
        self.calls = fx.Graph()
        self.borrowed: list[str] = []
        self._tensors = tensors
        self._root = root
        self._main = main
        self._values: dict[str, fx.Node] = {}
        self._dimensions: dict[str, fx.Node] = {}
        self._last_input: fx.Node | None = None
        self._taken = {"self"}

    def take(self, name: str, *, carried: bool = False) -> None:
        """Add an input."""
        self._values[name] = self._placeholder(name)
        dtype = self.graph.dtype(name) if carried else None
        if dtype is not None and dtype in CARRIERS:
            self._values[name] = self.calls.call_function(
                torch.Tensor.to, (self._values[name], CARRIERS[dtype])
            )

    def _placeholder(self, name: str) -> fx.Node:
        place = self._last_input or self.calls._root
        with self.calls.inserting_after(place):
            self._last_input = self.calls.placeholder(_identifier(name, self._taken))
        return self._last_input

    def emit(self, nodes: Iterable[gs.Node]) -> None:
        for node in nodes:
            site = Site(node, self)
            if not _has_row(node):
                domain = f" of domain {node.domain}" if node.domain else ""
                site.refuse(f"there is no lowering for this operator{domain}")
            outputs = LOWERINGS[node.op](site)
            self._store(node, outputs)

    def _store(self, node: gs.Node, outputs: Emitted) -> None:
        values = (outputs,) if isinstance(outputs, fx.Node) else outputs
        for tensor, value in zip(node.outputs, values, strict=False):
            if tensor.name and value is not None:
                self._values[tensor.name] = value
        for tensor in node.outputs[len(values) :]:
            if tensor.name:
                Site(node, self).refuse(f"its output {tensor.name!r} is not computed")

    def finish(self, outputs: Iterable[str], *, carried: bool = False) -> fx.Graph:
        names = list(outputs)
        values = [self.value(name) for name in names]
        for place, name in enumerate(names if carried else ()):
            dtype = self.graph.dtype(name)
            if dtype is not None and dtype in EXACT:
                to = (values[place], EXACT[dtype])
                values[place] = self.calls.call_function(torch.Tensor.to, to)
        self.calls.output(values[0] if self._main and len(values) == 1 else tuple(values))
        for node in reversed(list(self.calls.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                self.calls.erase_node(node)
        return self.calls

    # ---- Surroundings ----------------------------------------------------------------------

    def value(self, name: str) -> fx.Node:
        if name not in self._values:
            path = self._tensors.path(name) if self._main else None
            if path is not None:
                self._values[name] = self.calls.get_attr(path)
            else:
                assert not self._main, f"{name!r} is read before it is computed"
                self.borrowed.append(name)
                self._values[name] = self._placeholder(name)
        return self._values[name]

    def dimension(self, symbol: str) -> fx.Node | None:
        if symbol not in self._dimensions:
            for name in self.graph.inputs:
                shape = self.graph.shape(name) or ()
                if symbol in shape:
                    size = (self.value(name), shape.index(symbol))
                    self._dimensions[symbol] = self.calls.call_method("size", size)
                    break
        return self._dimensions.get(symbol)

    def weight(self, name: str) -> torch.Tensor | None:
        return self._tensors.get(name) if self._main else None

    def held(self, tensor: torch.Tensor) -> fx.Node:
        path = self._tensors.free("held")
        self._root.register_buffer(path, tensor)
        return self.calls.get_attr(path)

    def is_weight(self, name: str) -> bool:
        return name in self._tensors.weights

    def submodule(self, hint: str, module: nn.Module) -> str:
        name = self._tensors.free(hint)
        self._root.add_module(name, module)
        return name

    def bind(self, path: str, name: str) -> None:
        self._tensors.bind(path, name)

    def body(self, scope: gs.Graph) -> tuple[fx.GraphModule, tuple[str, ...]]:
        root = nn.Module()
        inner = _Builder(self.graph, self._tensors, root, main=False)
        for tensor in scope.inputs:
            inner.take(tensor.name)
        inner.emit(scope.nodes)
        calls = inner.finish(tensor.name for tensor in scope.outputs)
        return fx.GraphModule(root, calls), tuple(inner.borrowed)
