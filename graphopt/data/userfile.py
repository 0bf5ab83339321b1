"""Functions of the user's own, named as file.py:function."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from graphopt.data.wording import did_you_mean, reason
from graphopt.errors import DataError, GraphoptError

__all__ = ["is_function_name", "load_function", "source_digest", "user_code"]

_NAME = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)", re.DOTALL)


def is_function_name(text: str) -> bool:
    """Whether a text reads as file.py:function."""
    return _NAME.fullmatch(text) is not None


def source_digest(text: str) -> str:
    """A digest of the file that file.py:function names, and the text; "" for other texts."""
    match = _NAME.fullmatch(text)
    if match is None:
        return ""
    return f"{text} {hashlib.sha256(Path(match['file']).read_bytes()).hexdigest()}"


def load_function(text: str, who: str) -> Callable[..., object]:
    """Run the file and give its function; `who` opens the message where that fails."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise DataError(f"{who}: {text!r} must read file.py:function")
    path = Path(match["file"])
    if not path.is_file():
        raise DataError(f"{who}: there is no file {path}, asked for as {text!r}")
    module = types.ModuleType(f"graphopt_user_{path.stem}")
    module.__file__ = str(path)
    # Dataclasses and pickling look a module up by its name.
    sys.modules[module.__name__] = module
    with user_code(text, who):
        exec(compile(path.read_bytes(), match["file"], "exec"), module.__dict__)
    names = [name for name, value in vars(module).items() if callable(value)]
    if match["function"] not in names:
        hint = did_you_mean(match["function"], names)
        raise DataError(f"{who}: {path} has no function {match['function']!r}{hint}")
    function: Callable[..., object] = vars(module)[match["function"]]
    return function


@contextlib.contextmanager
def user_code(text: str, who: str) -> Iterator[None]:
    """Run code of the user's: it may import its neighbours, and what it raises is named."""
    match = _NAME.fullmatch(text)
    folder = str(Path(match["file"]).resolve().parent) if match else ""
    sys.path.insert(0, folder)
    try:
        yield
    except GraphoptError:
        raise
    # The edge to code that we do not know: anything may be raised, and all of it is the user's.
    except (Exception, SystemExit) as error:
        file = match["file"] if match else ""
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        place = f" (line {lines[-1]})" if lines else ""
        raise DataError(
            f"{who}: {text} raised {type(error).__name__}: {reason(error)}{place}"
        ) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
