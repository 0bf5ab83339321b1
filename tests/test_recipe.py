"""Recipes are read safely, and every mistake is named with its line and key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
        ("stages: [[lossless, refit]]", "'lossless': has stages of its own"),
        ("stages: [gradually: {steps: 0, stage: refit}]", "steps must be a whole number from 1"),
        ("stages: [gradually: {steps: 2, stage: refit}]", "no pass of its stage says how much"),
        ("stages: [gradually: {step: 2, stage: refit}]", "takes steps, schedule and stage"),
        ("stages: [gradually: {steps: 2, schedule: cube, stage: refit}]", "one of linear, cubic"),
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


@pytest.mark.parametrize(("schedule", "parts"), [("linear", [1 / 3, 2 / 3, 1]), ("cubic", None)])
@pytest.mark.parametrize("option", ["ratio", "macs", "bytes"])
def test_steps_of_a_schedule_add_up(schedule: str, parts: list[float] | None, option: str) -> None:
    """What every step leaves is on the way to what the whole is to leave."""
    parts = parts or [19 / 27, 26 / 27, 1]
    target = 0.4
    cut = {"remove-channels": {option: target}}
    stages = read_steps(
        [{"gradually": {"steps": 3, "schedule": schedule, "stage": [cut, "refit"]}}]
    )
    assert [[step.name for step in stage.passes] for stage in stages] == [
        ["remove-channels", "refit"]
    ] * 3
    given = [float(str(stage.passes[0].options()[option])) for stage in stages]
    if option == "ratio":
        left = np.cumprod([1 - value for value in given])
    else:
        assert all(stage.passes[0].options()["of"] == "original" for stage in stages)
        left = np.array(given)
    gone = 1 - target if option != "ratio" else target
    np.testing.assert_allclose(left, [1 - part * gone for part in parts], rtol=1e-5)


def test_steps_of_a_pass_that_knows_no_original_multiply() -> None:
    stages = read_steps([{"gradually": {"steps": 4, "stage": {"remove-and-refit": {"macs": 0.2}}}}])
    given = [float(str(stage.passes[0].options()["macs"])) for stage in stages]
    np.testing.assert_allclose(np.cumprod(given), [0.8, 0.6, 0.4, 0.2], rtol=1e-5)
