"""Recipes are read safely, and every mistake is named with its line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.errors import RecipeError
from graphopt.recipe import builtin_recipes, load_recipe, read_steps


def _write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_builtin_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert all(stage.passes for stage in recipe.stages)


def test_stages_rounds_and_included_recipes(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "description: mine\nstages:\n  - lossless\n  - [fold-batch-norm, {fold-constants: {}}]\n",
    )
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert recipe.stages[0].rounds > 1
    assert [step.name for step in recipe.stages[-1].passes] == ["fold-batch-norm", "fold-constants"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [fold-batchnorm]", "line 1.*did you mean 'fold-batch-norm'"),
        ("name: x\nstagse: []", "line 2: no key 'stagse'; did you mean 'stages'"),
        ("stages:\n  - fold-batch-norm: {eps: 1}", "line 2.*no option 'eps'"),
        ("stages: []", "must be a list"),
        ("rounds: 0\nstages: [fold-batch-norm]", "line 1: 'rounds' must be"),
        ("stages: [1, 2", "line 1: not valid YAML"),
        ("- a", "must be a mapping"),
        ("stages: [[]]", "a stage is a pass"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(_write(tmp_path, text))


def test_missing_and_unknown_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(tmp_path / "absent.yaml"))
    with pytest.raises(RecipeError, match="did you mean 'lossless'"):
        load_recipe("losless")
    with pytest.raises(RecipeError, match="unknown"):
        load_recipe("../lossless")


def test_steps_from_python() -> None:
    stages = read_steps(["fold-batch-norm", {"fold-constants": None}])
    assert [step.name for stage in stages for step in stage.passes] == [
        "fold-batch-norm",
        "fold-constants",
    ]
