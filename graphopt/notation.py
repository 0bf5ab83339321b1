"""Passes as one line of text: "fold-batch-norm,remove-channels{ratio=0.5};distill{epochs=3}"."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from enum import StrEnum

import yaml

from graphopt.errors import RecipeError
from graphopt.passbase import Pass

__all__ = ["parse", "spec", "value_text"]

_WORD = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*")


def parse(text: str) -> list[object]:
    """Read "a,b{ratio=0.5};c" as the stages of a recipe file: [["a", {"b": ..}], "c"].

    `,` joins passes of one stage, `;` ends a stage; option values are YAML scalars or lists.
    """
    if not text.strip():
        raise RecipeError("passes: the list is empty; name at least one")
    stages: list[list[object]] = [[]]
    rest = text
    while True:
        word = _WORD.match(rest)
        if word is None:
            raise RecipeError(f"passes {text!r}: a pass name is missing before {rest[:20]!r}")
        rest = rest[word.end() :]
        options: dict[str, object] = {}
        if rest.startswith("{"):
            inner, rest = _braced(rest, text)
            options = _options(inner, word[1])
        stages[-1].append({word[1]: options} if options else word[1])
        rest = rest.lstrip()
        if not rest or rest == ";":
            return [stage[0] if len(stage) == 1 else stage for stage in stages]
        if rest[0] not in ",;":
            raise RecipeError(f"passes {text!r}: expected ',' or ';' before {rest[:20]!r}")
        if rest[0] == ";":
            stages.append([])
        rest = rest[1:]


def _braced(rest: str, text: str) -> tuple[str, str]:
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:place], rest[place + 1 :]
    raise RecipeError(f"passes {text!r}: a brace is not closed")


def _options(inner: str, name: str) -> dict[str, object]:
    options: dict[str, object] = {}
    for part in _split(inner):
        key, equals, value = part.partition("=")
        if not equals:
            raise RecipeError(f"pass {name!r}: option {part.strip()!r} needs a value, key=value")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"pass {name!r}: option {part.strip()!r} cannot be read") from error
    return options


def _split(inner: str) -> list[str]:
    """Split at commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in inner:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def spec(step: Pass) -> str:
    """The text that stands for a pass; options at their default are left out."""
    shown = []
    for entry in dataclasses.fields(step):
        value = getattr(step, entry.name)
        if value != entry.default:
            shown.append(f"{entry.name}={value_text(value)}")
    return step.name + (f"{{{', '.join(shown)}}}" if shown else "")


def value_text(value: object) -> str:
    """The value of an option as it is written in a list of passes, or in a recipe."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**9)
    return text.removesuffix("...\n").strip()


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value
