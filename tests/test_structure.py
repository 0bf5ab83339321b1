"""The house in order: public names, documented commands, snippets that run."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import graphopt
from tests.samples import convnet

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MODULES = sorted(
    path.relative_to(ROOT)
    for package in ("graphopt", "passes")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__main__.py" and path.parent.name != "recipes"
)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_module_declares_its_public_names(path: Path) -> None:
    """`__all__` is there, sorted (capitals first), and names what the module defines or imports."""
    tree = ast.parse((ROOT / path).read_text())
    declared = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    )
    assert list(declared) == sorted(declared, key=_order)
    assert ast.get_docstring(tree), "a module opens with one sentence"


def _order(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("name", graphopt.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(graphopt, name) is not None


def test_no_other_name_resolves() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        graphopt.lod  # noqa: B018


@pytest.mark.parametrize("place", range(len(re.findall(r"```python\n", README))))
def test_readme_snippet_runs(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippet = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[place]
    onnx.save(convnet(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snippet.py").write_text(snippet)
    done = subprocess.run([sys.executable, "snippet.py"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_readme_commands_are_what_ci_does() -> None:
    """The command that installs and tests is CI's, but for where the environment is."""
    command = re.search(r"<!-- tests -->\n```sh\n(.*?)\n```", README, re.DOTALL)
    assert command is not None
    install, run = command[1].split(" && ")[1:]
    ci = (ROOT / ".ci" / "run").read_text()
    for part in (*shlex.split(install)[2:], shlex.split(run)[-1]):
        assert part in ci, part


def test_readme_names_every_verb() -> None:
    verbs = importlib.import_module("graphopt.cli.main").VERBS
    assert [verb for verb in verbs if f"graphopt {verb}" not in README] == []
