"""`graphopt passes` and `graphopt recipes`: the manual, generated from the code itself."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import click

from graphopt.cli.show import print_table
from graphopt.notation import spec, value_text
from graphopt.passbase import Pass
from graphopt.recipe import builtin_recipes, load_recipe
from graphopt.registry import catalog, describe_type, load_class

__all__ = ["passes", "recipes"]


@click.command()
@click.argument("name", required=False)
def passes(name: str | None) -> int:
    """List the passes, or show the manual of NAME: what it does, promises, needs and takes."""
    if name is None:
        rows = []
        for entry in catalog().values():
            made = load_class(entry.name)
            needs = ", ".join(sorted(made.needs))
            rows.append([entry.name, made.promise, needs, _headline(made)])
        print_table("", ["pass", "promise", "needs", "what it does"], rows, left=4)
        return 0
    made = load_class(name)
    click.echo(f"{made.name} (promise: {made.promise})\n\n{inspect.getdoc(made)}")
    for base in _shared(made):
        click.echo(f"\n{inspect.getdoc(base)}")
    hints = typing.get_type_hints(made)
    options = [
        [entry.name, describe_type(hints[entry.name]), _default(entry)]
        for entry in dataclasses.fields(made)
    ]
    if options:
        click.echo()
        print_table("", ["option", "type", "default"], options, left=3)
    return 0


def _shared(made: type[Pass]) -> list[type[object]]:
    """Where options come from that several passes have."""
    return [
        base
        for base in made.__mro__
        if dataclasses.is_dataclass(base) and not issubclass(base, Pass)
    ]


def _headline(made: type[object]) -> str:
    return (inspect.getdoc(made) or "").splitlines()[0]


def _default(entry: dataclasses.Field[object]) -> str:
    missing = entry.default is dataclasses.MISSING
    return "must be given" if missing else value_text(entry.default)


@click.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> int:
    """List the recipes, or show the stages of NAME."""
    if name is None:
        print_table("", ["recipe", "what it does"], sorted(builtin_recipes().items()), left=2)
        return 0
    recipe = load_recipe(name)
    click.echo(f"{recipe.name}\n\n{recipe.description}\n")
    rows = [
        [str(place), "" if stage.rounds == 1 else f"up to {stage.rounds} rounds", spec(step)]
        for place, stage in enumerate(recipe.stages, 1)
        for step in stage.passes
    ]
    print_table("", ["stage", "repeated", "pass"], rows, left=3)
    return 0
