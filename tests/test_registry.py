"""Passes are found by name, and options are checked against their declared types."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from typing import ClassVar, Literal

import pytest

from graphopt import recipe, registry
from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.notation import parse, spec
from graphopt.passbase import Context, Pass, Promise
from graphopt.recipe import load_recipe, read_steps
from graphopt.registry import build, catalog, load_class


class Shade(StrEnum):
    LIGHT = "light"
    DARK = "dark"


@dataclass(frozen=True)
class Options(Pass):
    """Take every kind of option."""

    name: ClassVar[str] = "options"
    promise: ClassVar[Promise] = Promise.EXACT

    ratio: float = 0.5
    count: int = 1
    on: bool = False
    shade: Shade = Shade.LIGHT
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must be between 0 and 1, got {self.ratio}")

    def run(self, graph: Graph, context: Context) -> None:
        """Do nothing."""


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.Entry("options", f"{__name__}:Options", "tests")
    for module in (registry, recipe):
        monkeypatch.setattr(module, "catalog", lambda: {"options": entry})
    monkeypatch.setitem(__import__("sys").modules, __name__, inspect.getmodule(Options))


@pytest.mark.parametrize("name", sorted(catalog()))
def test_catalog_entry_is_well_formed(name: str) -> None:
    made = load_class(name)
    assert made.name == name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert inspect.getdoc(made)
    assert made.promise in list(Promise)


@pytest.mark.usefixtures("options")
def test_values_are_coerced_to_their_types() -> None:
    made = build(
        "options",
        {"ratio": "1e-3", "count": 3, "shade": "dark", "kind": "b", "limit": None, "names": ["x"]},
    )
    assert made == Options(0.001, 3, False, Shade.DARK, "b", None, ("x",))


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratoi": 0.1}, "no option 'ratoi'; did you mean 'ratio'"),
        ({"count": 0.5}, "option 'count' must be a whole number, got 0.5"),
        ({"count": True}, "option 'count' must be a whole number, got True"),
        ({"on": "yes"}, "option 'on' must be true or false"),
        ({"shade": "blue"}, "one of 'light', 'dark'"),
        ({"kind": "c"}, "one of 'a', 'b'"),
        ({"ratio": 2}, "ratio must be between 0 and 1, got 2.0"),
    ],
)
def test_wrong_options_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build("options", given)


def test_unknown_pass_suggests_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'fold-batch-norm'"):
        build("fold-batchnorm")


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize(
    "text",
    [
        "options",
        "options{ratio=0.25}",
        "options{count=3, on=true, shade=dark}",
        "options{limit=7, names=[a, b]}",
    ],
)
def test_text_and_pass_are_inverse(text: str) -> None:
    ((made,),) = (stage.passes for stage in read_steps(parse(text)))
    assert spec(made) == text


@pytest.mark.usefixtures("options")
def test_comma_joins_and_semicolon_ends_a_stage() -> None:
    stages = read_steps(parse("options,options{count=2}; options"))
    assert [len(stage.passes) for stage in stages] == [2, 1]


def test_recipe_stands_between_semicolons() -> None:
    stages = read_steps(parse("fold-batch-norm; cleanup"))
    assert stages[1:] == load_recipe("cleanup").stages


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize("text", ["", "options{ratio=1", "options{ratio}", "options options", ",x"])
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse(text)


def test_empty_text_says_so() -> None:
    with pytest.raises(RecipeError, match="the list is empty; name at least one"):
        parse(" ")


def test_duplicate_name_names_both_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        value = "x:y"
        dist = None

        def __init__(self, value: str) -> None:
            self.value = value

        def load(self) -> dict[str, str]:
            return {"same-name": self.value}

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Point("one:A"), Point("two:B")])
    catalog.cache_clear()
    with pytest.raises(RecipeError, match=r"'one:A' and 'two:B'"):
        catalog()


def test_listing_imports_no_pass() -> None:
    table = importlib.import_module("passes").CATALOG
    assert sorted(table) == list(table), "the table is kept sorted"
    assert set(table) <= set(catalog())
