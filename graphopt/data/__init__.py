"""Inputs to calibrate, train and measure with: named data sets, arrays, folders, functions.

`open` reads a specification, `Dataset` hands out batches, `InputSpec` says what a model takes.
"""

from __future__ import annotations

from graphopt.data.dataset import Dataset, Source
from graphopt.data.inputs import InputSpec, input_specs
from graphopt.data.spec import held_out, open  # noqa: A004
from graphopt.data.userfile import is_function_name, load_function, source_digest, user_code

__all__ = [
    "Dataset",
    "InputSpec",
    "Source",
    "held_out",
    "input_specs",
    "is_function_name",
    "load_function",
    "open",
    "source_digest",
    "user_code",
]
