"""`graphopt pack` and `graphopt unpack`: the packed file."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli.options import (
    FILE,
    check_external,
    check_json,
    check_target,
    json_option,
    read_graph,
    write_json,
)
from graphopt.cli.show import print_table
from graphopt.data import is_function_name
from graphopt.errors import ModelError, TargetError
from graphopt.packed import Packing, is_packed
from graphopt.packed import pack as pack_model
from graphopt.packed import unpack as unpack_model
from graphopt.passbase import Note

__all__ = ["pack", "unpack"]


@click.command()
@click.argument("model", type=FILE)
@click.argument("file", type=FILE)
@json_option
def pack(model: Path, file: Path, json_file: Path | None) -> int:
    """Pack MODEL into FILE (.gopt), which restores it byte for byte; external data go with it."""
    check_json(json_file, model, beside=file)
    _check_target(model, file)
    if json_file is not None:
        check_external(json_file, read_graph(model))
    source = read_graph(model).to_bytes() if is_function_name(str(model)) else model
    packing = pack_model(source, file)
    _show(model, file, packing)
    if json_file is not None:
        write_json(json_file, _document(model, file, packing))
    return 0


@click.command()
@click.argument("file", type=FILE)
@click.argument("model", type=FILE)
def unpack(file: Path, model: Path) -> int:
    """Restore the packed FILE to MODEL (.onnx), external data beside it."""
    _check_target(file, model)
    if file.is_file() and not is_packed(file):
        raise ModelError(f"{file}: is not a packed model; `graphopt pack` makes one")
    size = unpack_model(file, model)
    click.echo(f"{model}: {size:,} bytes restored from {file.stat().st_size:,}")
    return 0


def _check_target(source: Path, target: Path) -> None:
    check_target(str(target), target)
    if target.exists() and source.exists() and target.samefile(source):
        raise TargetError(f"{target}: would replace its own source; name another file")


def _show(model: Path, file: Path, packing: Packing) -> None:
    rows = [["restored", f"{packing.restored:,}", ""]]
    rows += [
        [part, f"{size:,}", f"{size / packing.size:.1%}"]
        for part, size in packing.parts.items()
        if size
    ]
    rows.append([file.name, f"{packing.size:,}", f"{packing.restored / packing.size:.2f}x smaller"])
    print_table(f"{model.name}, packed", ["", "bytes", ""], rows)


def _document(model: Path, file: Path, packing: Packing) -> dict[str, Note]:
    return {
        "input": str(model),
        "output": str(file),
        "restored_bytes": packing.restored,
        "packed_bytes": packing.size,
        "parts": dict[str, Note](packing.parts),
    }
