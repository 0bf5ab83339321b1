"""Carry out a plan: QuantizeLinear and DequantizeLinear in one edit.

A tensor that is computed on integers keeps its name for the values read back from its grid, so
whoever reads it, graph outputs too, reads what integers can tell. One that is computed in floats
keeps its name and its values; only layers read it from the grid.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.quantize.grid import BIAS, Grid
from graphopt.quantize.placement import Unit
from graphopt.quantize.plan import Plan
from graphopt.sparse import pass_notes_on

__all__ = ["insert"]


def insert(graph: Graph, plan: Plan) -> None:
    """Put a plan's units on integers."""
    if not plan.placement.units:
        return
    insertion = _Insertion(graph, plan)
    graph.apply(insertion.edit())
    pass_notes_on(graph, insertion.heirs)
    graph.prune()


class _Insertion:
    """The nodes and constants of one edit, gathered unit by unit."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self._graph, self._plan = graph, plan
        self._made = {name for unit in plan.placement.units for name in unit.outputs}
        self._taken: set[str] = set()
        self._constants: dict[str, Array] = {}
        self._nodes: list[NewNode] = []
        self._read_as: dict[str, str] = {}
        self._stored: dict[tuple[str, int], str] = {}
        self._ends: dict[int, tuple[str, ...]] = {}

    @property
    def heirs(self) -> dict[str, str]:
        """What stored constants are read as, and their names."""
        return {target: name for (name, _), target in self._stored.items()}

    def edit(self) -> Edit:
        units = self._plan.placement.units
        for name in dict.fromkeys(name for unit in units for name in unit.reads):
            self._source(name)
        for unit in units:
            self._unit(unit)
        gone = tuple(self._node(name) for unit in units for name in unit.nodes)
        return Edit(remove=gone, add=tuple(self._nodes), constants=self._constants)

    def _node(self, output: str) -> gs.Node:
        node = self._graph.producer(output)
        assert node is not None, "a plan names nodes of its graph"
        return node

    def _fresh(self, hint: str) -> str:
        """A name that neither the graph nor this edit has."""
        name, count = self._graph.fresh(hint), 1
        while name in self._taken:
            count += 1
            name = self._graph.fresh(f"{hint}_{count}")
        self._taken.add(name)
        return name

    def _source(self, name: str) -> None:
        """Decide under which name units read a tensor, and make that if no unit does."""
        if name in self._made:
            self._read_as[name] = name
        elif name in self._plan.operands:
            self._read_as[name] = self._store(name, self._plan.operands[name])
        else:
            self._read_as[name] = self._fresh(f"{name}_dq")
            self._pair(name, name, self._read_as[name])

    def _pair(self, tensor: str, source: str, target: str) -> None:
        """Quantize `source` on the grid of `tensor`, and read it back as `target`."""
        codes = self._fresh(f"{tensor}_q")
        ends = self._parameters(tensor, self._plan.activations[tensor])
        self._nodes.append(NewNode("QuantizeLinear", (source, *ends), (codes,)))
        self._nodes.append(NewNode("DequantizeLinear", (codes, *ends), (target,)))

    def _parameters(self, tensor: str, grid: Grid) -> tuple[str, ...]:
        """A grid's scale and zero point as constants; tensors that share a grid share them.

        Biases have no zero point; ONNX Runtime wants one of weights, though it is 0.
        """
        if id(grid) not in self._ends:
            scale, zero = self._fresh(f"{tensor}_scale"), self._fresh(f"{tensor}_zero")
            ends: dict[str, Array] = {scale: grid.scale}
            if grid.format != BIAS:
                ends[zero] = grid.zero
            self._constants |= ends
            self._ends[id(grid)] = tuple(ends)
        return self._ends[id(grid)]

    def _store(self, name: str, grid: Grid, array: Array | None = None) -> str:
        """Keep a constant as integers, once for each grid; return what reads it back."""
        key = name, id(grid)
        if key not in self._stored:
            values = self._graph.constant(name) if array is None else array
            assert values is not None, "what is stored is constant"
            codes, self._stored[key] = self._fresh(f"{name}_q"), self._fresh(f"{name}_dq")
            self._constants[codes] = grid.quantize(values)
            ends = self._parameters(name, grid)
            attrs = {} if grid.axis is None else {"axis": grid.axis}
            read = NewNode("DequantizeLinear", (codes, *ends), (self._stored[key],), attrs)
            self._nodes.append(read)
        return self._stored[key]

    def _unit(self, unit: Unit) -> None:
        """The operator on what was read from grids, and the grids of what it makes."""
        gridded = [name for name in unit.outputs if name in self._plan.activations]
        ends = {name: self._fresh(f"{name}_f") for name in gridded}
        node = self._node(unit.nodes[0])
        name = node.name or unit.nodes[0]
        op, attrs = unit.rule.instead or (node.op, dict(node.attrs))
        inputs = self._inputs(unit, node)
        if len(unit.nodes) > 1:
            made: tuple[str, ...] = (ends.get(unit.name, unit.name),)
        else:
            made = tuple(ends.get(tensor.name, tensor.name) for tensor in node.outputs)
        if unit.adds_bias:
            between = node.outputs[0].name
            self._nodes.append(NewNode(op, inputs, (between,), attrs, name=name))
            op, inputs, attrs = "Add", (between, self._added(unit)), {}
        self._nodes.append(NewNode(op, inputs, made, attrs, name=name))
        for tensor in gridded:
            self._pair(tensor, ends[tensor], tensor)

    def _inputs(self, unit: Unit, node: gs.Node) -> tuple[str | Array, ...]:
        inputs = [self._read_as.get(t.name, t.name) for t in node.inputs]
        if unit.weight is None:
            return tuple(inputs)
        inputs[1] = self._store(unit.weight, self._plan.weights[unit.weight, unit.axis])
        if unit.bias is None or unit.name not in self._plan.biases:
            return tuple(inputs)
        values = self._graph.constant(unit.bias)
        assert values is not None, "a layer's bias is constant"
        grid = self._plan.biases[unit.name]
        return (*inputs[:2], self._store(unit.bias, grid, values.reshape(-1)))

    def _added(self, unit: Unit) -> str | Array:
        """The bias behind a product of matrices, which stays in floats.

        A second axis keeps ONNX Runtime from merging the two into a Gemm that it then runs in
        floats, where no grid follows.
        """
        assert unit.bias is not None, "what is added is a bias"
        values = self._graph.constant(unit.bias)
        assert values is not None, "a bias is constant"
        return unit.bias if unit.name in self._plan.activations else values.reshape(1, -1)
