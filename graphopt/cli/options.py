"""Options that several verbs share, and the reading of their values."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from graphopt.errors import ModelError, RecipeError, TargetError
from graphopt.files import atomic_file, check_folder_writable, is_one_of

if TYPE_CHECKING:
    from graphopt.ir import Graph
    from graphopt.passbase import Note

__all__ = [
    "FILE",
    "MOST_THREADS",
    "TEXT",
    "check_external",
    "check_json",
    "check_target",
    "check_unread",
    "data_option",
    "json_option",
    "metric_option",
    "preprocess_option",
    "read_budget",
    "read_graph",
    "read_latency",
    "seed_option",
    "threads_option",
    "write_json",
]

MOST_THREADS = 1024  # more only make ONNX Runtime start threads for minutes


class _Text(click.types.StringParamType):
    """A text that says something: in scripts an empty one is a variable that was not set."""

    name = "text"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        if not str(value).strip():
            self.fail("is empty; give a value, or leave the option out", param, ctx)
        return str(value)


class _File(click.ParamType):  # type: ignore[type-arg]  # older ones have no parameters
    """A path that can be asked about; an empty one would mean the folder one is in."""

    name = "path"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        path = Path(TEXT.convert(value, param, ctx))
        try:
            path.exists()
        except OSError as error:
            self.fail(f"{path}: {error.strerror}", param, ctx)
        return path

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


TEXT = _Text()
FILE = _File()
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
    type=TEXT,
    help="Inputs: digits, cifar10, mnist (as 'cifar10[:500]' for 500 of them), a .npz "
    "named after the inputs, a folder of images, or file.py:function.",
)
metric_option = click.option(
    "--metric", type=TEXT, help="top1, top5, agreement, mse, sqnr, or file.py:function."
)
preprocess_option = click.option(
    "--preprocess",
    type=TEXT,
    help="How images become inputs: imagenet, cifar10, unit, raw, or 'mean=..;std=..'. Default: "
    "as usual for a named data set; imagenet for a folder, unit if its images are grey.",
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
    if model.suffix == ".py":
        raise ModelError(f"{model}: say which function makes the model, as {model}:factory")
    return Graph.load(model)


def read_budget(
    context: click.Context, option: click.Parameter, value: float | None
) -> float | None:
    """A budget is a number from 0: no comparison with NaN would ever fail."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise click.BadParameter(f"{value:g} is no loss; give a number from 0, as 0.01")
    return value


def check_json(path: Path | None, *read: Path | str | None, beside: Path | None = None) -> None:
    """Raise TargetError, before any work is done, for a file that cannot be meant.

    `read` is what the command reads, as it was named, `beside` another file that it writes.
    """
    if path is None:
        return
    check_target(f"--json {path}", path)
    check_unread(f"--json {path}", path, *read)
    if beside is not None and path.resolve() == beside.resolve():
        raise TargetError(f"--json {path}: the result goes there; name another file")


def check_target(name: str, path: Path) -> None:
    """Raise TargetError for a path where no file can be written."""
    if path.is_dir():
        raise TargetError(f"{name}: is a directory; name a file")
    if path.exists() and not path.is_file():
        raise TargetError(f"{name}: is no regular file, and would be replaced by one; name a file")
    if not path.parent.is_dir():
        raise TargetError(f"{name}: there is no directory {path.parent}; make it first")
    check_folder_writable(path.parent, name)


def check_unread(name: str, path: Path, *read: Path | str | None) -> None:
    """Raise TargetError for a target that the command reads, as FILE, FILE:function or FILE[:N]."""
    for text in map(str, filter(None, read)):
        for file in (text, text.rpartition(":")[0], text.rpartition("[:")[0]):
            with contextlib.suppress(OSError):  # names of data sets can be no names of files
                if file and is_one_of(path, [Path(file)]):
                    raise TargetError(f"{name}: the command reads that file; name another")


def check_external(json_file: Path | None, *graphs: Graph) -> None:
    """Raise TargetError for a JSON document that would replace weights of a model."""
    for graph in graphs:
        check_json(json_file, *(graph.source.external if graph.source is not None else ()))


def write_json(path: Path, document: Mapping[str, Note]) -> None:
    """Write a JSON document whole or not at all."""
    from graphopt.report import strict_json

    text = strict_json(document)
    with atomic_file(path) as file:
        file.write(text.encode())
