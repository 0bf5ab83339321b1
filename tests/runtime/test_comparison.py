"""Errors, ratios, mismatches and what cannot be compared."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from graphopt.runtime import Difference, compare


def one(a: npt.ArrayLike, b: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> Difference:
    (found,) = compare([np.asarray(a, dtype)], [np.asarray(b, dtype)], ["y"]).outputs
    return found


def test_equal_outputs() -> None:
    found = compare([np.ones(3), np.arange(3)], [np.ones(3), np.arange(3)], ["p", "q"])
    assert found.identical
    assert found.within(0.0)
    assert found.worst is None
    assert (found.max_abs, found.relative, found.sqnr_db) == (0, 0, math.inf)


def test_errors_by_hand() -> None:
    found = one([1.0, 2.0, 3.0, -4.0], [1.0, 2.5, 3.0, -4.0])
    assert found.max_abs == 0.5
    assert found.mean_abs == 0.125
    assert found.relative == 0.5 / 7  # the range is wider than the largest magnitude
    assert found.sqnr_db == pytest.approx(10 * math.log10(30 / 0.25))
    assert found.within(0.08)
    assert not found.within(0.07)
    assert found.within(0.0, absolute=0.5)


def test_the_scale_of_a_nearly_constant_output_is_its_magnitude() -> None:
    assert one([1000.0, 1000.5], [1001.0, 1000.5]).relative == pytest.approx(1 / 1000.5)


def test_one_percent_is_found() -> None:
    a = np.random.default_rng(0).standard_normal(1000)
    b = a.copy()
    b[17] += 0.01 * (a.max() - a.min())
    found = compare([a], [b], ["y"])
    assert found.relative == pytest.approx(0.01)
    assert not found.within(5e-3)


def test_zeros_against_anything_is_infinitely_off() -> None:
    found = one([0.0, 0.0], [0.0, 1e-9])
    assert (found.relative, found.sqnr_db) == (math.inf, -math.inf)
    assert found.within(0.0, absolute=1e-8)
    assert one([0.0], [0.0]).within(0.0)


@pytest.mark.parametrize(
    ("a", "b", "mismatched"),
    [
        (math.nan, math.nan, 0),
        (math.inf, math.inf, 0),
        (math.nan, 1.0, 1),
        (1.0, math.nan, 1),
        (math.inf, -math.inf, 1),
        (math.inf, 3e38, 1),
        (math.nan, math.inf, 1),
    ],
)
def test_what_is_not_finite_must_agree(a: float, b: float, mismatched: int) -> None:
    found = one([a, 1.0], [b, 1.0])
    assert found.mismatched == mismatched
    assert found.max_abs == 0
    assert found.within(1.0) == (mismatched == 0)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_whole_numbers_are_compared_exactly(dtype: type) -> None:
    found = one([1, 0, 1, 1], [1, 1, 1, 1], dtype)
    assert found.exact
    assert (found.mismatched, found.max_abs) == (1, 1)
    assert not found.within(1.0)
    assert found.within(0.0, flips=0.25)


def test_unsigned_differences_do_not_wrap() -> None:
    assert one([0], [255], np.uint8).max_abs == 255


def test_strings() -> None:
    found = one(["a", "b"], ["a", "c"], object)
    assert (found.exact, found.mismatched) == (True, 1)
    assert one(["a"], ["a"], object).within(0.0)


def test_half_and_complex_types() -> None:
    assert one([1, 2], [1, 2.5], ml_dtypes.bfloat16).max_abs == 0.5
    assert one([3 + 4j], [3 + 3j], np.complex64).relative == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.zeros(3), np.zeros((3, 1)), "shape"),
        (np.zeros(3), np.zeros(3, np.float32), "type"),
    ],
)
def test_what_cannot_be_compared(a: np.ndarray, b: np.ndarray, said: str) -> None:
    found = compare([a, a], [a, b], ["p", "q"])
    assert found.problems == (f"q: {found.outputs[1].problem}",)
    assert said in found.problems[0]
    assert not found.within(math.inf, absolute=math.inf)
    assert found.worst == found.outputs[1]


def test_a_missing_output() -> None:
    assert compare([np.zeros(1)], [], ["y"]).problems == ("outputs: 1 outputs against 0",)


def collection(*elements: np.ndarray) -> np.ndarray:
    array = np.empty(len(elements), object)
    for index, element in enumerate(elements):
        array[index] = element
    return array


def test_sequences_are_compared_element_by_element() -> None:
    a = collection(np.zeros(2), collection(np.array([1]), np.array([0.5])))
    b = collection(np.zeros(2), collection(np.array([1]), np.array([0.75])))
    found = compare([a], [b], ["y"])
    assert [output.name for output in found.outputs] == ["y[0]", "y[1][0]", "y[1][1]"]
    assert found.max_abs == 0.25
    assert compare([a], [collection(np.zeros(2))], ["y"]).problems
    assert compare([collection()], [collection()], ["y"]).identical


def test_empty_outputs() -> None:
    assert one(np.zeros((0, 4)), np.zeros((0, 4))).within(0.0)
