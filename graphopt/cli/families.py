"""What `graphopt inspect` says of coupled channels: what can go, and why the rest cannot."""

from __future__ import annotations

from graphopt.cli.show import print_table
from graphopt.coupling import Coupling, Family, couple, prepare
from graphopt.ir import Graph
from graphopt.passbase import Note

__all__ = ["coupled", "families_document", "show_families"]


def coupled(graph: Graph) -> Coupling:
    """Couple a copy of a graph in the same way as `remove-channels` does, so names agree."""
    copy = graph.clone()
    prepare(copy)
    return couple(copy)


def show_families(coupling: Coupling, *, counted: bool) -> None:
    """Families that can be cut, then those that cannot, those that hold most first.

    Of a model none of whose MACs could be `counted` nobody knows what a family holds of them.
    """
    columns = ["family", "channels", "tensors", "MACs held", "parameters held"]
    rows = [
        [family.name, *_numbers(coupling, family, counted=counted)] for family in coupling.families
    ]
    print_table("families of coupled channels that can be cut", columns, rows)
    blurred = {family.blur: family.name for family in coupling.families if not family.exact}
    if blurred:
        note = [[name, blur] for blur, name in blurred.items()]
        print_table("read all at once, after a cut only those left", ["family", "by"], note, left=2)
    frozen = sorted(coupling.frozen, key=lambda family: coupling.held[family.name], reverse=True)
    rows = [
        [family.name, *_why(family), *_numbers(coupling, family, counted=counted)]
        for family in frozen
    ]  # what cutting it would save is what it holds
    print_table(
        "families that cannot be cut",
        ["family", "held by", "because it", *columns[1:]],
        rows,
        left=3,
    )


def _numbers(coupling: Coupling, family: Family, *, counted: bool) -> list[str]:
    held = coupling.held[family.name]
    tensors = len({member.tensor for member in family.members})
    macs = f"{held.macs:,}" if counted else "unknown"
    return [str(family.size), str(tensors), macs, f"{held.parameters:,}"]


def _why(family: Family) -> tuple[str, str]:
    assert family.frozen is not None, "only frozen families have a reason"
    return family.frozen.node, family.frozen.reason


def families_document(coupling: Coupling) -> dict[str, Note]:
    """The same for `--json`; `axes` are the axes of each tensor that a family passes through."""
    frozen: list[Note] = []
    for family in coupling.frozen:
        node, reason = _why(family)
        frozen.append({**_described(coupling, family), "held_by": node, "reason": reason})
    return {"families": [_described(coupling, f) for f in coupling.families], "frozen": frozen}


def _described(coupling: Coupling, family: Family) -> dict[str, Note]:
    axes: dict[str, list[Note]] = {}
    for member in family.members:
        axes.setdefault(member.tensor, []).append(member.axis)
    held = coupling.held[family.name]
    return {
        "name": family.name,
        "channels": family.size,
        "axes": {tensor: list(places) for tensor, places in axes.items()},
        "macs": held.macs,
        "parameters": held.parameters,
        "exact": family.exact,
        "blur": family.blur,
    }
