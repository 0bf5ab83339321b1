"""Compute what depends on constants alone, and what shapes say, before the model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.errors import RecipeError, RuntimeUnavailable
from graphopt.ir import Array, Edit, Graph, bodies, constant_part, fold_integers, known_array
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite.growth import Ledger, size_bytes
from graphopt.runtime import Session

__all__ = ["FoldConstants"]

_ROUNDS = 8
"""A folded size can make a shape known and that another size; deeper chains wait for next time."""

_WORK_BYTES = 1 << 30
"""A single intermediate result larger than this is not computed at all."""

_NEVER = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),  # weights stay int8
        *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute in ONNX Runtime everything that depends on constants alone, all in one session.

    Integer tensors that follow from shapes become constants without running anything, also
    through dynamic dimensions. A result is stored only if it is at most `limit_bytes` larger
    than the constants that it makes superfluous, so that Tile, Expand, Range or a second,
    transposed use of a tied weight do not bloat the file. Left alone: QuantizeLinear and
    DequantizeLinear (quantized weights stay quantized), random operators, If, Loop and Scan,
    what yields a graph output directly, and what ONNX Runtime cannot run.
    """

    limit_bytes: int = 1 << 20

    name: ClassVar[str] = "fold-constants"
    promise: ClassVar[Promise] = Promise.EXACT

    def __post_init__(self) -> None:
        if self.limit_bytes < 0:
            raise RecipeError(
                f"fold-constants: limit_bytes must be 0 or more, got {self.limit_bytes}"
            )

    def run(self, graph: Graph, context: Context) -> None:
        for _ in range(_ROUNDS):
            fold_integers(graph)
            graph.prune()
            values = _compute(graph, self.limit_bytes)
            if not any(known_array(value) is not None for value in values.values()):
                break
            graph.reshape_notice()  # a computed size may tell shapes


def _compute(graph: Graph, limit_bytes: int) -> Mapping[str, Array]:
    """Fold one round; return the new constants."""
    cone = _cone(graph)
    ledger = Ledger(graph, cone, limit_bytes)
    wanted, _ = _frontier(graph, cone, ledger.affords)
    values = {
        name: value for name, value in _run(graph, wanted).items() if _fits(graph, name, value)
    }
    stored, gone = _frontier(graph, cone, values.__contains__)
    constants = {name: values[name] for name in stored}
    if constants:
        graph.apply(Edit(remove=tuple(gone), constants=constants))
    return constants


def _cone(graph: Graph) -> list[gs.Node]:
    """The nodes that depend on constants alone, in order."""
    inside: set[str] = set()
    cone = []
    for node in graph.all_nodes():
        names = [tensor.name for tensor in node.inputs if tensor.name]
        if node.op in _NEVER or node.op in graph.functions or any(bodies(node)):
            continue
        if not all(name in inside or graph.constant(name) is not None for name in names):
            continue
        outputs = [tensor.name for tensor in node.outputs if tensor.name]
        if all(size_bytes(graph, name) <= _WORK_BYTES for name in outputs):
            inside.update(outputs)
            cone.append(node)
    return cone


def _frontier(
    graph: Graph, cone: Sequence[gs.Node], storable: Callable[[str], bool]
) -> tuple[list[str], list[gs.Node]]:
    """The tensors to store and the nodes that go; what cannot be stored is computed as before."""
    inside = {id(node) for node in cone}
    stored: list[str] = []
    gone: dict[int, gs.Node] = {}
    for node in reversed(cone):
        names = [tensor.name for tensor in node.outputs if tensor.name]
        needed = [name for name in names if _is_needed(graph, name, inside, gone)]
        if any(graph.is_output(name) for name in needed) or not all(map(storable, needed)):
            continue
        gone[id(node)] = node
        stored.extend(needed)
    return stored, list(gone.values())


def _is_needed(graph: Graph, name: str, cone: set[int], gone: Mapping[int, gs.Node]) -> bool:
    return graph.is_output(name) or any(id(n) not in gone for n in graph.consumers(name))


def _run(graph: Graph, names: Sequence[str]) -> Mapping[str, Array]:
    """The values that ONNX Runtime can compute."""
    if not names:
        return {}
    try:
        with Session.open(constant_part(graph, names), optimize="none") as session:
            return dict(zip(names, session.run({}), strict=True))
    except RuntimeUnavailable:
        half = len(names) // 2
        return {**_run(graph, names[:half]), **_run(graph, names[half:])} if half else {}


def _fits(graph: Graph, name: str, value: Array) -> bool:
    """Whether a computed value is what inference says it is."""
    shape, dtype = graph.shape(name), graph.dtype(name)
    if value.dtype.kind in "OUS" or dtype not in (None, value.dtype):
        return False
    if shape is None:
        return True
    pairs = zip(shape, value.shape, strict=False)
    return len(shape) == value.ndim and all(d == n for d, n in pairs if isinstance(d, int))
