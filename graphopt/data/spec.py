"""Data specifications: from the text a user writes to a data set."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

import numpy as np

from graphopt.data.arrays import read_npz
from graphopt.data.dataset import Dataset
from graphopt.data.folder import FolderStore
from graphopt.data.function import read_function
from graphopt.data.images import ImageSource
from graphopt.data.inputs import InputSpec
from graphopt.data.pixels import ImageStore
from graphopt.data.preprocess import PREPROCESSES, parse_preprocess
from graphopt.data.userfile import is_function_name
from graphopt.data.wording import did_you_mean
from graphopt.errors import DataError

__all__ = ["held_out", "open"]

Part = Literal["train", "test"]

_LIMIT = re.compile(r"(?P<rest>.+)\[:(?P<limit>[^\]]*)\]", re.DOTALL)
_NAMED = re.compile(r"(?P<name>[\w-]+)(:(?P<part>\w*))?")


@dataclass(frozen=True)
class _NamedSet:
    """Where a named data set is read (a module imported on demand) and its usual preprocessing."""

    module: str
    preprocess: str


_NAMED_SETS = {
    "cifar10": _NamedSet("graphopt.data.official", "cifar10"),
    "digits": _NamedSet("graphopt.data.digits", "unit"),
    "mnist": _NamedSet("graphopt.data.official", "unit"),
}
_PARTS: tuple[Part, ...] = ("train", "test")


@dataclass(frozen=True)
class _Spec:
    """A specification taken apart: `part` is None where the text names none."""

    text: str
    base: str
    name: str | None
    part: Part | None
    limit: int | None


def open(  # noqa: A001 (data.open is what the built-in is for files)
    spec: str | Path,
    inputs: Sequence[InputSpec] | None = None,
    *,
    preprocess: str | None = None,
    seed: int = 0,
    split: Part = "train",
) -> Dataset:
    """Open what a text names, in the form that the model's inputs have.

        digits, cifar10, mnist      a named data set; `split` says which part,
        cifar10:test                unless the text does (:train or :test)
        data.npz                    arrays named after the inputs, and `labels` if there are any
        images/                     a folder of images; class folders give labels
        file.py:function            what a function returns, see `read_function`

    `[:N]` after any of these takes N rows: the first, or N drawn with `seed` from class folders,
    whose files are in the order of their classes. A named data set comes before a folder of that
    name; ./digits is the folder. Without `inputs`, images come in their own size; `Dataset.bind`
    fits them to a model later.
    """
    parsed = _parse(str(spec))
    if parsed.name is None and is_function_name(parsed.base):
        _no_preprocess(preprocess, parsed.base)
        found = read_function(parsed.base, inputs, parsed.limit)
    elif parsed.name is None and _is_file(parsed.base):
        if parsed.base.endswith(".py"):
            raise DataError(
                f"data: {parsed.base}: say which function gives them, as {parsed.base}:function"
            )
        _no_preprocess(preprocess, parsed.base)
        found = Dataset.of(read_npz(Path(parsed.base), inputs), parsed.text)
    else:
        found = _open_images(parsed, preprocess, split)
        found = found if inputs is None else found.bind(inputs)
    return _limited(found, parsed, seed)


def held_out(spec: str | Path) -> str | None:
    """The specification of the test part that belongs to a named data set.

    None where the text names a part itself, or what it names has no test part: `digits` gives
    `digits:test`, `cifar10[:500]` gives `cifar10:test[:500]`.
    """
    parsed = _parse(str(spec))
    if parsed.name is None or parsed.part is not None:
        return None
    return f"{parsed.name}:test" + ("" if parsed.limit is None else f"[:{parsed.limit}]")


def _parse(text: str) -> _Spec:
    base, limit = text, None
    match = _LIMIT.fullmatch(text)
    if match and not (_is_file(text) or _is_folder(text)):
        base, limit = match["rest"], _rows(match["limit"], text)
    named = _NAMED.fullmatch(base)
    if named is None or named["name"] not in _NAMED_SETS:
        return _Spec(text, base, None, None, limit)
    part = named["part"]
    if part is not None and part not in _PARTS:
        raise DataError(
            f"data: {named['name']} has the parts {' and '.join(_PARTS)}, got {part!r}"
            + (f"; {part} rows are {named['name']}[:{part}]" if part.isdecimal() else "")
            + did_you_mean(part, _PARTS)
        )
    return _Spec(text, base, named["name"], cast(Part | None, part), limit)


def _is_file(text: str) -> bool:
    return _mode(text, stat.S_ISREG)


def _is_folder(text: str) -> bool:
    return _mode(text, stat.S_ISDIR)


def _mode(text: str, test: Callable[[int], bool]) -> bool:
    """Whether the text is the path of such a thing; no text is too odd to be asked about."""
    try:
        return text != "" and test(Path(text).stat().st_mode)
    except (OSError, ValueError):
        return False


def _rows(limit: str, text: str) -> int:
    if not limit.isdecimal() or int(limit) < 1:
        raise DataError(f"data: [:N] takes a number of rows from 1, got {text!r}")
    return int(limit)


def _no_preprocess(preprocess: str | None, base: str) -> None:
    if preprocess is not None:
        raise DataError(
            f"preprocess: {preprocess!r} is for images, {base} gives arrays that are fed as they "
            f"are; leave the preprocessing out"
        )


def _open_images(parsed: _Spec, preprocess: str | None, split: Part) -> Dataset:
    chosen = None if preprocess is None else parse_preprocess(preprocess)
    if parsed.name is not None:
        row = _NAMED_SETS[parsed.name]
        read = vars(import_module(row.module))[parsed.name]
        store: ImageStore = read(parsed.part or split)
        default = row.preprocess
    else:
        store, default = FolderStore.scan(_folder(parsed)), "imagenet"
    if len(store) == 0:
        raise DataError(f"data: {parsed.base} holds no images; give at least one")
    source = ImageSource(store, parsed.base, PREPROCESSES[default], chosen)
    return Dataset.of(source, parsed.text)


def _folder(parsed: _Spec) -> Path:
    if _is_folder(parsed.base):
        return Path(parsed.base)
    if parsed.base.endswith((".npz", ".py")):
        raise DataError(f"data: there is no file {parsed.base}; check the path")
    known = "a data set (" + ", ".join(_NAMED_SETS) + ")"
    raise DataError(
        f"data: {parsed.base!r} is neither {known}, an .npz file, a folder of images nor "
        f"file.py:function{did_you_mean(parsed.base.split(':')[0], _NAMED_SETS)}"
    )


def _limited(found: Dataset, parsed: _Spec, seed: int) -> Dataset:
    if parsed.limit is None or parsed.limit >= len(found):
        return found
    if parsed.name is not None or not _is_folder(parsed.base) or found.labels is None:
        return found.take(parsed.limit)
    drawn = np.random.default_rng(seed).permutation(len(found))[: parsed.limit]
    return found.select(np.sort(drawn))
