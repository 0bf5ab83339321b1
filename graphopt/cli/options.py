"""Options that several verbs share, and the reading of their values."""

from __future__ import annotations

import math
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
    "FILE",
    "MOST_THREADS",
    "check_json",
    "data_option",
    "json_option",
    "preprocess_option",
    "read_budget",
    "read_graph",
    "read_latency",
    "seed_option",
    "threads_option",
    "write_json",
]

MOST_THREADS = 1024  # more only make ONNX Runtime start threads for minutes
FILE = click.Path(path_type=Path)  # shells complete it
json_option = click.option("--json", "json_file", type=FILE, help="Write the result as JSON.")
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of all that is drawn at random.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(0, MOST_THREADS),
    default=1,
    show_default=True,
    help="Threads of ONNX Runtime; 0: all cores.",
)
data_option = click.option(
    "--data",
    help="Inputs: digits, cifar10, mnist (as 'cifar10[:500]' for 500 of them), a .npz "
    "named after the inputs, a folder of images, or file.py:function.",
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


def read_budget(
    context: click.Context, option: click.Parameter, value: float | None
) -> float | None:
    """A budget is a number from 0: no comparison with NaN would ever fail."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise click.BadParameter(f"{value:g} is no loss; give a number from 0, as 0.01")
    return value


def check_json(path: Path | None) -> None:
    """Raise TargetError, before any work is done, for a file that cannot be meant."""
    if path is not None and path.is_dir():
        raise TargetError(f"--json {path}: is a directory; name a file")
    if path is not None and not path.parent.is_dir():
        raise TargetError(f"--json {path}: there is no directory {path.parent}; make it first")


def write_json(path: Path, document: Mapping[str, Note]) -> None:
    """Write a JSON document whole or not at all."""
    from graphopt.files import atomic_file
    from graphopt.report import strict_json

    check_json(path)
    text = strict_json(document)
    with atomic_file(path) as file:
        file.write(text.encode())
