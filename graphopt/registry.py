"""Find passes by name; make them from plain data with every option checked.

A distribution offers passes through the entry-point group `graphopt.passes`; the entry's value is
a table {pass name: "module:Class"}, so that listing passes imports none of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from graphopt.errors import RecipeError
from graphopt.passbase import Pass

__all__ = ["Entry", "build", "catalog", "describe_type", "load_class", "nearest"]

GROUP = "graphopt.passes"

_MOST_NAMED = 25
"""More names than these are no help in one line."""


@dataclass(frozen=True)
class Entry:
    """Where a pass comes from."""

    name: str
    target: str
    owner: str


@functools.cache
def catalog() -> Mapping[str, Entry]:
    """All installed passes by name, sorted; none is imported. Read once per process.

    Raises RecipeError if two distributions offer the same name, or a table cannot be loaded.
    """
    found: dict[str, Entry] = {}
    for point in metadata.entry_points(group=GROUP):
        owner = point.dist.name if point.dist is not None else point.value
        for name, target in _table(point, owner).items():
            if name in found and found[name].target != target:
                raise RecipeError(
                    f"pass {name!r}: offered by both {found[name].owner!r} and {owner!r}; "
                    "uninstall one of them"
                )
            found[name] = Entry(name, target, owner)
    return dict(sorted(found.items()))


def _table(point: metadata.EntryPoint, owner: str) -> Mapping[str, str]:
    try:
        table = point.load()
    except (ImportError, AttributeError) as error:
        module = point.value.partition(":")[0]
        place = _location(module)
        raise RecipeError(
            f"passes of {owner!r}: {point.value!r} cannot be loaded ({error}); "
            + (
                f"the name {module!r} leads to {place}, rename that folder"
                if place
                else "reinstall"
            )
        ) from error
    if not isinstance(table, Mapping):
        raise RecipeError(f"passes of {owner!r}: {point.value!r} is not a table of names")
    return table


def _location(module: str) -> str | None:
    spec_found = importlib.util.find_spec(module)
    if spec_found is None:
        return None
    places = [spec_found.origin or "", *(spec_found.submodule_search_locations or ())]
    return next((place for place in places if place and Path(place).exists()), None)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint: the known word most like a wrong one, or all of them if they fit a line or two."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(names) > _MOST_NAMED:
        return "`graphopt passes` and `graphopt recipes` list what there is"
    return f"known: {', '.join(names) or 'none'}"


def load_class(name: str) -> type[Pass]:
    """Import a pass by name. Raises RecipeError with the nearest name if there is none."""
    entries = catalog()
    if name not in entries:
        raise RecipeError(f"pass {name!r}: unknown; {nearest(name, entries)}")
    module, _, attribute = entries[name].target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"pass {name!r}: {entries[name].target!r} of {entries[name].owner!r} "
            f"cannot be imported ({error})"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, Pass)):
        raise RecipeError(f"pass {name!r}: {entries[name].target!r} is not a Pass")
    return found


def build(name: str, options: Mapping[str, object] | None = None) -> Pass:
    """Make a pass from its name and options, each checked against its declared type."""
    made = load_class(name)
    hints = typing.get_type_hints(made)
    declared = {entry.name for entry in dataclasses.fields(made)}
    values = {}
    for key, value in (options or {}).items():
        key = key.replace("-", "_")
        if key not in declared:
            raise RecipeError(f"pass {name!r}: no option {key!r}; {nearest(key, declared)}")
        values[key] = _coerce(value, hints[key], f"pass {name!r}: option {key!r}")
    missing = [
        entry.name
        for entry in dataclasses.fields(made)
        if entry.name not in values
        and entry.default is dataclasses.MISSING
        and entry.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RecipeError(f"pass {name!r}: option {missing[0]!r} must be given")
    try:
        return made(**values)
    except ValueError as error:
        raise RecipeError(f"pass {name!r}: {error}") from error


def _coerce(value: object, hint: object, who: str) -> object:
    """The value as the declared type; an int may stand for a float, a list for a tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _coerce(value, option, who)
            except RecipeError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif origin in (tuple, Sequence) and isinstance(value, list | tuple):
        return tuple(_coerce(entry, arguments[0], who) for entry in value)
    elif origin in (Mapping, dict) and isinstance(value, Mapping):
        return {
            _coerce(key, arguments[0], who): _coerce(entry, arguments[1], who)
            for key, entry in value.items()
        }
    elif hint is type(None):
        if value is None:
            return None
    elif inspect.isclass(hint) and issubclass(hint, StrEnum):
        if value in list(hint):
            return hint(str(value))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as text
            return float(value)
    elif _is_of(value, hint):
        return value
    raise RecipeError(f"{who} must be {describe_type(hint)}, got {value!r}")


def _is_of(value: object, hint: object) -> bool:
    """isinstance, but True and False are no integers here."""
    if not inspect.isclass(hint) or not isinstance(value, hint):
        return False
    return hint is bool or not isinstance(value, bool)


_WORDS: Mapping[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


def describe_type(hint: object) -> str:
    """An option type in words, as they are written in recipes: a list is [a, b]."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if inspect.isclass(hint) and issubclass(hint, StrEnum):
        return "one of " + ", ".join(repr(str(entry)) for entry in hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe_type, arguments))
    if origin in (tuple, Sequence):
        return f"a list, as [a, b], each {describe_type(arguments[0])}"
    return _WORDS.get(hint, str(hint))
