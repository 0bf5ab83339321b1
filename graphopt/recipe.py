"""Recipes: stages of passes in a YAML file, checked before anything is loaded.

name: slim-and-quantize
description: one sentence
rounds: 1                        # repeat all stages until nothing changes, at most so often
stages:
  - lossless                     # a pass, or another recipe
  - remove-channels: {ratio: 0.5}
  - [refit, distill: {epochs: 3}]   # a stage of several passes: the budget is checked after it
  - gradually:                   # the same stage several times, each time going a part of the way
      steps: 4
      schedule: cubic            # linear: equal parts; cubic: much at first, little at the end
      stage: [remove-channels: {macs: 0.5}, distill: {epochs: 1}]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import yaml

from graphopt.errors import RecipeError
from graphopt.passbase import Pass
from graphopt.registry import build, catalog, nearest

__all__ = ["Recipe", "Stage", "builtin_recipes", "load_recipe", "read_steps"]

_KEYS = {"name", "description", "rounds", "stages"}

_GRADUALLY = "gradually"
_SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda time: time,
    "cubic": lambda time: 1 - (1 - time) ** 3,
}
"""From the part of the steps that is done to the part of the way, as Zhu & Gupta (2017) go it."""

_LEFT, _GOING = ("macs", "bytes", "latency"), ("ratio",)
"""Options that say which fraction of the graph a pass is given is to be left, or to go."""

_ABSOLUTE = ("macs", "bytes")
"""Of these, those that count by the original if the pass's option `of` says so."""


@dataclass(frozen=True)
class Stage:
    """Passes that are judged together; `rounds` > 1 repeats them until nothing changes."""

    passes: tuple[Pass, ...]
    rounds: int = 1


@dataclass(frozen=True)
class Recipe:
    """A named list of stages."""

    name: str
    description: str
    stages: tuple[Stage, ...]


def builtin_recipes() -> dict[str, str]:
    """Names of the recipes that come along, with their descriptions; no pass is imported."""
    found = {}
    for entry in sorted(_folder().iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            document = yaml.safe_load(entry.read_text())
            found[entry.name.removesuffix(".yaml")] = str(document["description"])
    return found


def _folder() -> resources.abc.Traversable:
    return resources.files("graphopt") / "recipes"


def load_recipe(source: str) -> Recipe:
    """Load a recipe by name or by path. Raises RecipeError naming the line and the key."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        try:
            return _read(path.read_text(), str(path), ())
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise RecipeError(f"recipe {source!r}: cannot be read ({why})") from error
    return _builtin(source, ())


def _builtin(name: str, within: tuple[str, ...]) -> Recipe:
    entry = _folder() / f"{name}.yaml"
    if not name or "/" in name or not entry.is_file():
        raise RecipeError(f"recipe {name!r}: unknown; {nearest(name, builtin_recipes())}")
    if name in within:
        raise RecipeError(f"recipe {name!r}: includes itself through {' > '.join(within)}")
    return _read(entry.read_text(), f"{name}.yaml", (*within, name))


def _read(text: str, where: str, within: tuple[str, ...]) -> Recipe:
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"recipe {where}{place}: not valid YAML") from error
    if not isinstance(document, dict) or not isinstance(tree, yaml.MappingNode):
        raise RecipeError(f"recipe {where}: must be a mapping with the key 'stages'")
    lines = {key.value: value.start_mark.line + 1 for key, value in tree.value}
    unknown = sorted(str(key) for key in document if key not in _KEYS)
    if unknown:
        hint = nearest(unknown[0], _KEYS)
        line = lines.get(unknown[0], 1)
        raise RecipeError(f"recipe {where}, line {line}: no key {unknown[0]!r}; {hint}")
    rounds = document.get("rounds", 1)
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise RecipeError(
            f"recipe {where}, line {lines['rounds']}: 'rounds' must be a whole number from 1 on, "
            f"got {rounds!r}"
        )
    stages = document.get("stages")
    if not isinstance(stages, list) or not stages:
        raise RecipeError(f"recipe {where}: 'stages' must be a list of passes")
    nodes = next(value for key, value in tree.value if key.value == "stages").value
    made: list[Stage] = []
    for item, node in zip(stages, nodes, strict=True):
        place = f"recipe {where}, line {node.start_mark.line + 1}"
        try:
            made.extend(_stages(item, within))
        except RecipeError as error:
            raise RecipeError(f"{place}: {error}") from error
    if rounds > 1:
        made = [Stage(tuple(step for stage in made for step in stage.passes), rounds)]
    name = str(document.get("name") or Path(where).stem)
    return Recipe(name, str(document.get("description") or ""), tuple(made))


def _stages(item: object, within: tuple[str, ...]) -> Iterator[Stage]:
    if isinstance(item, str) and item not in catalog():
        try:
            yield from _builtin(item, within).stages
        except RecipeError as error:
            if "unknown" not in str(error):
                raise
            hint = nearest(item, (*catalog(), *builtin_recipes()))
            raise RecipeError(f"pass or recipe {item!r}: unknown; {hint}") from error
        return
    if isinstance(item, Mapping) and list(item) == [_GRADUALLY]:
        yield from _gradual(item[_GRADUALLY])
        return
    yield Stage(tuple(_steps(item)))


def _gradual(options: object) -> Iterator[Stage]:
    """The same stage `steps` times; each leaves so much that all together leave what it says."""
    if not isinstance(options, Mapping) or set(options) - {"steps", "schedule", "stage"}:
        raise RecipeError(f"{_GRADUALLY}: takes steps, schedule and stage, got {options!r}")
    steps, schedule = options.get("steps"), options.get("schedule", "linear")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise RecipeError(f"{_GRADUALLY}: steps must be a whole number from 1 on, got {steps!r}")
    if schedule not in _SCHEDULES:
        raise RecipeError(
            f"{_GRADUALLY}: schedule must be one of {', '.join(_SCHEDULES)}, got {schedule!r}"
        )
    passes = tuple(_steps(options.get("stage")))
    if not any(_amounts(step) for step in passes):
        raise RecipeError(
            f"{_GRADUALLY}: no pass of its stage says how much is to go; give it one of "
            f"{', '.join((*_GOING, *_LEFT))}"
        )
    parts = [0.0, *(_SCHEDULES[schedule](step / steps) for step in range(1, steps + 1))]
    for before, after in itertools.pairwise(parts):
        yield Stage(tuple(_partly(step, before, after) for step in passes))


def _amounts(step: Pass) -> dict[str, float]:
    """The fraction of the graph that each such option leaves in the end."""
    given = {key: value for key, value in step.options().items() if isinstance(value, float)}
    left = {key: given[key] for key in _LEFT if key in given}
    return left | {key: 1 - given[key] for key in _GOING if key in given}


def _partly(step: Pass, before: float, after: float) -> Pass:
    """A pass that takes a graph from one part of its way to another."""
    changed: dict[str, object] = {}
    for key, target in _amounts(step).items():
        start, end = (1 - part * (1 - target) for part in (before, after))
        if key in _ABSOLUTE and "of" in step.options():
            changed |= {key: round(end, 6), "of": "original"}
        else:
            changed[key] = round(end / start if key in _LEFT else 1 - end / start, 6)
    return replace(step, **changed)


def read_steps(items: Sequence[object]) -> tuple[Stage, ...]:
    """Stages from plain data, as Python callers write them: names, mappings, passes and lists."""
    return tuple(stage for item in items for stage in _stages(item, ()))


def _steps(item: object) -> Iterator[Pass]:
    if isinstance(item, Pass):
        yield item
    elif isinstance(item, str):
        if item not in catalog() and item in builtin_recipes():
            raise RecipeError(
                f"recipe {item!r}: has stages of its own, so it cannot be part of one; on the "
                "command line write ; before and after it"
            )
        yield build(item)
    elif isinstance(item, Mapping) and len(item) == 1:
        name, options = next(iter(item.items()))
        if options is not None and not isinstance(options, Mapping):
            raise RecipeError(f"pass {name!r}: options must be a mapping, got {options!r}")
        yield build(str(name), options)
    elif isinstance(item, list | tuple) and item:
        for entry in item:
            yield from _steps(entry)
    else:
        raise RecipeError(f"a stage is a pass, {{pass: options}} or a list of them, got {item!r}")
