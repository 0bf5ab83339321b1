"""Data from the user's own functions, and what goes wrong in them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt import data
from graphopt.data import InputSpec, load_function
from graphopt.errors import DataError

X = InputSpec("x", ("N", 3), np.dtype(np.float32))
HEAD = "import numpy as np\n"


def write(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(HEAD + body)
    return f"{folder / 'mine.py'}:load"


@pytest.mark.parametrize(
    ("returns", "labels"),
    [
        ("{'x': np.zeros((4, 3), np.float32)}", None),
        ("{'x': np.zeros((4, 3), np.float32), 'labels': np.arange(4)}", [0, 1, 2, 3]),
        ("np.zeros((4, 3), np.float32)", None),
        ("(np.zeros((4, 3), np.float32), np.arange(4))", [0, 1, 2, 3]),
        ("({'x': np.zeros((4, 3), np.float32)}, [3, 2, 1, 0])", [3, 2, 1, 0]),
        ("[np.zeros((1, 3), np.float32), np.zeros((3, 3), np.float32)]", None),
        ("((np.zeros((2, 3), np.float32), [i, i]) for i in range(2))", [0, 0, 1, 1]),
        ("[(np.zeros(3, np.float32), i) for i in range(4)]", [0, 1, 2, 3]),
        ("[{'x': np.zeros(3, np.float32)}] * 4", None),
    ],
)
def test_forms(tmp_path: Path, returns: str, labels: list[int] | None) -> None:
    dataset = data.open(write(tmp_path, f"def load():\n    return {returns}\n"), [X])
    (batch,) = dataset.batches(9)
    assert batch["x"].shape == (4, 3)
    assert (None if dataset.labels is None else dataset.labels.tolist()) == labels


def test_a_data_set_is_taken_as_it_is(tmp_path: Path) -> None:
    body = (
        "from graphopt.data import Dataset\n"
        "def load():\n"
        "    return Dataset.from_arrays({'x': np.ones((4, 3), np.float32)}).take(2)\n"
    )
    text = write(tmp_path, body)
    assert len(data.open(text, [X])) == 2
    with pytest.raises(DataError, match=r"no array 'y'|'x', which is no input"):
        data.open(text, [InputSpec("y", ("N", 3), np.dtype(np.float32))])


def test_an_endless_generator_stops_at_the_limit(tmp_path: Path) -> None:
    body = "def load():\n    while True:\n        yield np.zeros((4, 3), np.float32)\n"
    assert len(data.open(write(tmp_path, body) + "[:10]", [X])) == 10


def test_rows_of_a_state_are_joined_along_their_axis(tmp_path: Path) -> None:
    body = (
        "def load():\n"
        "    for _ in range(3):\n"
        "        yield {'x': np.zeros((1, 3), np.float32), 's': np.zeros((2, 1), np.float32)}\n"
    )
    inputs = [X, InputSpec("s", (2, "N"), np.dtype(np.float32))]
    dataset = data.open(write(tmp_path, body) + "[:2]", inputs)
    (batch,) = dataset.batches(5)
    assert (batch["x"].shape, batch["s"].shape) == ((2, 3), (2, 2))


def test_neighbours_can_be_imported_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("WIDTH = 3\n")
    before = list(sys.path)
    body = (
        "from neighbour_of_mine import WIDTH\n"
        "def load():\n    return np.zeros((4, WIDTH), np.float32)\n"
    )
    assert len(data.open(write(tmp_path, body), [X])) == 4
    assert sys.path == before
    del sys.modules["neighbour_of_mine"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def load():\n    raise KeyError('no\\nsuch file')\n", r"raised KeyError: .*\(line 3\)"),
        ("def load():\n    yield 1\n    1 / 0\n", r"raised ZeroDivisionError.*\(line 4\)"),
        ("def load(path):\n    return 1\n", "raised TypeError: .*missing 1 required"),
        ("import no_such_module_at_all\n", r"ModuleNotFoundError: .*\(line 2\)"),
        ("def load(:\n", "raised SyntaxError"),
        ("import sys\nsys.exit(3)\n", "raised SystemExit: 3"),
        ("def lod():\n    pass\n", "no function 'load'; did you mean 'lod'"),
        ("load = 3\n", "no function 'load'"),
        ("def load():\n    return None\n", "gave a NoneType, which is no array of numbers"),
        ("def load():\n    return []\n", "gave nothing"),
        ("def load():\n    return {}\n", "no array 'x'"),
        ("def load():\n    return np.zeros((4, 3))\n", "takes float32, .* has float64"),
        ("def load():\n    return {'x': [[1], [1, 2]]}\n", "raised ValueError"),
        ("def load():\n    return (1, 2, 3)\n", "a tuple of 3"),
        (
            "def load():\n    yield {'x': np.zeros((1, 3))}\n    yield {'z': np.zeros((1, 3))}\n",
            r"gave \['x'\] first and \['z'\] in item 2",
        ),
        (
            "def load():\n    for n in (3, 4):\n        yield np.zeros((1, n), np.float32)\n",
            r"takes shape \(N, 3\), .* has \(1, 4\)",
        ),
    ],
)
def test_what_goes_wrong_is_one_clear_line(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        data.open(write(tmp_path, body), [X])
    assert "\n" not in str(raised.value)


def test_an_unnamed_array_cannot_feed_two_inputs(tmp_path: Path) -> None:
    text = write(tmp_path, "def load():\n    return np.zeros((4, 3), np.float32)\n")
    with pytest.raises(DataError, match="one unnamed array, the model has 2 inputs"):
        data.open(text, [X, InputSpec("y", ("N", 3), np.dtype(np.float32))])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data: there is no file .*none\.py"):
        data.open(f"{tmp_path}/none.py:load", [X])
    with pytest.raises(DataError, match=r"^metric: 'what' must read file\.py:function"):
        load_function("what", "metric")
