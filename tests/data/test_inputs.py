"""Which axis rows lie on, and whether arrays fit a model's inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graphopt.data.inputs import InputSpec, Shape, batch_axes, check_arrays, fixed_batch
from graphopt.errors import DataError


def spec(name: str, shape: Shape | None, dtype: type = np.float32) -> InputSpec:
    return InputSpec(name, shape, np.dtype(dtype))


@pytest.mark.parametrize(
    ("shapes", "axes", "fixed"),
    [
        ([("N", 3, 8, 8)], [0], None),
        ([(-1, 3, 8, 8)], [0], None),
        ([None], [0], None),
        ([("batch", "time"), (2, "batch", 128), ()], [0, 1, None], None),
        ([(2, "batch", 128), ("batch", "time")], [1, 0], None),
        ([("N", 8), (1, 4)], [0, None], None),
        ([(4, 8), (4,), (7, 2)], [0, 0, None], 4),
        ([(1, 3, 416, 416)], [0], 1),
    ],
)
def test_batch_axes(shapes: list[Shape | None], axes: list[int | None], fixed: int | None) -> None:
    inputs = [spec(f"x{i}", shape) for i, shape in enumerate(shapes)]
    assert list(batch_axes(inputs).values()) == axes
    assert fixed_batch(inputs) == fixed


def test_arrays_that_fit_pass() -> None:
    inputs = [
        spec("x", ("batch", "time")),
        spec("state", (2, "batch", 3)),
        spec("sr", (), np.int64),
    ]
    arrays = {
        "x": np.zeros((5, 7), np.float32),
        "state": np.zeros((2, 5, 3), np.float32),
        "sr": np.array(16000),
    }
    check_arrays(arrays, inputs, "arrays")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"shape \(N, 3, 8, 8\), d.npz has \(2, 8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.float32), r"d.npz has \(3, 8, 8\)"),
        (np.zeros((2, 3, 8, 8), np.float64), "takes float32, d.npz has float64; convert"),
        (np.zeros((2, 3, 8, 8), np.uint8), "takes float32, d.npz has uint8"),
    ],
)
def test_shape_and_dtype_are_checked(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        check_arrays({"x": array}, [spec("x", ("N", 3, 8, 8))], "d.npz")
    assert "\n" not in str(raised.value)


def test_names_are_checked() -> None:
    inputs = [spec("image", ("N", 2)), spec("mask", ("N", 2))]
    array = np.zeros((1, 2), np.float32)
    with pytest.raises(DataError, match=r"no array 'mask'.*has 'image'"):
        check_arrays({"image": array}, inputs, "d.npz")
    with pytest.raises(DataError, match=r"'imge', which is no input.*did you mean 'image'"):
        check_arrays({"imge": array, "mask": array}, inputs, "d.npz")
    with pytest.raises(DataError, match="'other', which is no input"):
        check_arrays({"image": array, "mask": array, "other": array}, inputs, "d.npz")


def test_text_fits_a_string_input() -> None:
    words = np.array(["a", "bc"])
    check_arrays({"s": words}, [InputSpec("s", ("N",), np.dtype(object))], "d")
    with pytest.raises(DataError, match="takes object"):
        check_arrays({"s": np.zeros(2)}, [InputSpec("s", ("N",), np.dtype(object))], "d")


def test_bfloat16_is_told_from_float16() -> None:
    inputs = [InputSpec("x", ("N",), np.dtype(ml_dtypes.bfloat16))]
    check_arrays({"x": np.zeros(2, ml_dtypes.bfloat16)}, inputs, "d")
    with pytest.raises(DataError, match="takes bfloat16, d has float16"):
        check_arrays({"x": np.zeros(2, np.float16)}, inputs, "d")
