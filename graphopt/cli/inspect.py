"""`graphopt inspect`: what a model consists of and what it costs."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli.options import (
    FILE,
    check_external,
    check_json,
    json_option,
    read_graph,
    write_json,
)
from graphopt.cli.show import print_table
from graphopt.cost import cost
from graphopt.ir import Graph
from graphopt.manager import size_of_source
from graphopt.passbase import Note
from graphopt.report import macs

__all__ = ["inspect"]


@click.command()
@click.argument("model", type=FILE)
@json_option
def inspect(model: Path, json_file: Path | None) -> int:
    """Show MODEL's inputs, outputs, operators, parameters, MACs and bytes, and its channels.

    MACs are multiply-accumulates for a batch of one; operators that could not be costed are named.
    Channels that can only be removed together form families; what a family holds is what would go
    if all of it went. Families that cannot be cut are listed with what holds them.
    """
    from graphopt.cli.families import coupled, families_document, show_families

    check_json(json_file, model)
    graph = read_graph(model)
    check_external(json_file, graph)
    file = size_of_source(graph)
    found = cost(graph)
    print_table("", ["tensor", "type", "shape"], _tensors(graph), left=3)
    totals = [
        ("nodes", f"{file.nodes:,}"),
        ("nodes once shape arithmetic is folded", f"{found.nodes:,}"),
        ("parameters", f"{found.parameters:,}"),
        ("MACs", macs(file)),
        ("file (bytes)", f"{file.bytes:,}"),
        ("operator set", ", ".join(f"{d or 'onnx'} {v}" for d, v in graph.domains.items())),
    ]
    if found.uncosted:
        names = ", ".join(f"{name} x{count}" for name, count in found.uncosted.items())
        totals.append(("not in MACs", names))
    print_table("", ["", "total"], totals)
    operators = sorted(found.operators.items(), key=lambda entry: (-entry[1], entry[0]))
    print_table("", ["operator", "nodes"], [(name, str(count)) for name, count in operators])
    coupling = coupled(graph)
    show_families(coupling, counted=bool(found.macs) or not found.uncosted)
    if json_file is not None:
        write_json(json_file, {**_document(model, graph), "channels": families_document(coupling)})
    return 0


def _tensors(graph: Graph) -> list[list[str]]:
    rows = []
    for kind, names in (("in", graph.inputs), ("out", graph.outputs)):
        for name in names:
            shape = graph.shape(name)
            dims = "?" if shape is None else " x ".join("?" if d is None else str(d) for d in shape)
            rows.append([f"{kind} {name}", str(graph.dtype(name) or "?"), dims])
    return rows


def _document(model: Path, graph: Graph) -> dict[str, Note]:
    file = size_of_source(graph)
    found = cost(graph)

    def described(names: tuple[str, ...]) -> list[Note]:
        return [
            {
                "name": name,
                "dtype": str(graph.dtype(name)),
                "shape": list(graph.shape(name) or ()) if graph.shape(name) is not None else None,
            }
            for name in names
        ]

    return {
        "model": str(model),
        "nodes": file.nodes,
        "folded_nodes": found.nodes,
        "parameters": found.parameters,
        "macs": found.macs,
        "bytes": file.bytes,
        "operators": dict(found.operators),
        "uncosted": dict(found.uncosted),
        "domains": dict(graph.domains),
        "inputs": described(graph.inputs),
        "outputs": described(graph.outputs),
    }
