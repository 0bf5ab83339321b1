"""The named normalisations and their text form."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.data.preprocess import PREPROCESSES, parse_preprocess
from graphopt.errors import DataError

PIXELS = np.array([[[[0, 128, 255]]]], np.uint8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unit", [0, 128 / 255, 1]),
        ("raw", [0, 128, 255]),
        ("imagenet", [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, 0.594 / 0.225]),
        ("cifar10", [-0.4914 / 0.2470, (128 / 255 - 0.4822) / 0.2435, 0.5535 / 0.2616]),
        ("mean=0.5;std=0.25", [-2, (128 / 255 - 0.5) * 4, 2]),
        ("mean=0, 0.5, 1; std=1, 2, 4", [0, (128 / 255 - 0.5) / 2, 0]),
    ],
)
def test_values(text: str, expected: list[float]) -> None:
    found = parse_preprocess(text)(PIXELS, 255)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6, atol=1e-6)


def test_peak_is_white_whatever_its_value() -> None:
    sixteen = np.array([0, 8, 16], np.float32)
    np.testing.assert_array_equal(PREPROCESSES["unit"](sixteen, 16), [0, 0.5, 1])
    np.testing.assert_array_equal(PREPROCESSES["raw"](sixteen, 16), [0, 127.5, 255])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", "did you mean 'imagenet'"),
        ("", "neither"),
        ("mean=1", "neither"),
        ("mean=a;std=1", "numbers joined by commas, got 'a'"),
        ("mean=1,2;std=1", "1 or 3 finite values"),
        ("mean=nan;std=1", "1 or 3 finite values"),
        ("mean=0;std=0", "std must be above 0"),
        ("mean=0;std=1,-1,1", "std must be above 0"),
    ],
)
def test_bad_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_preprocess(text)
