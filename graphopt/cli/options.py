"""Options that several verbs share, and the reading of their values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graphopt.errors import RecipeError, TargetError

if TYPE_CHECKING:
    from graphopt.ir import Graph
    from graphopt.passbase import Note

__all__ = [
    "data_option",
    "json_option",
    "preprocess_option",
    "read_graph",
    "read_latency",
    "seed_option",
    "threads_option",
    "write_json",
]

json_option = click.option("--json", "json_file", type=Path, help="Write the result as JSON.")
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Of all that is drawn at random."
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Threads of ONNX Runtime; 0: all cores.",
)
data_option = click.option(
    "--data",
    help="Inputs: digits, cifar10, mnist (with [:N] if wanted), a .npz named after the inputs, "
    "a folder of images, or file.py:function.",
)
preprocess_option = click.option(
    "--preprocess",
    help="How images become inputs: imagenet, cifar10, unit, raw, or 'mean=..;std=..'.",
)

_LATENCY = re.compile(r"(?P<number>\d+(\.\d+)?|\.\d+)(?P<unit>x|ms)")


def read_latency(text: str) -> tuple[float, bool]:
    """Read "0.5x" (relative to the original) or "3ms"; the flag says whether it is relative."""
    match = _LATENCY.fullmatch(text.strip())
    if match is None or float(match["number"]) <= 0:
        raise RecipeError(
            f"--target-latency: {text!r} is neither a ratio as 0.5x nor a time as 3ms"
        )
    return float(match["number"]), match["unit"] == "x"


def read_graph(model: Path) -> Graph:
    """Load MODEL: an ONNX file, or file.py:factory, whose function returns a module and inputs."""
    from graphopt.data import is_function_name
    from graphopt.ir import Graph

    if is_function_name(str(model)):
        from graphopt.frontend import load_model

        return load_model(str(model))
    return Graph.load(model)


def write_json(path: Path, document: Mapping[str, Note]) -> None:
    """Write a JSON document whole or not at all."""
    from graphopt.ir import atomic_file

    text = json.dumps(document, indent=2, allow_nan=False, default=str)
    if path.is_dir():
        raise TargetError(f"{path}: is a directory; name a file")
    with atomic_file(path) as file:
        file.write(text.encode() + b"\n")
