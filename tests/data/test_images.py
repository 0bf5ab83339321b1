"""Images in the size, order and dtype of a model's input, seen through the digits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from graphopt import data
from graphopt.data import InputSpec
from graphopt.data.inputs import Shape
from graphopt.data.pixels import Frame, PixelStore
from graphopt.errors import DataError


def spec(*shape: int | str | None, dtype: type = np.float32) -> InputSpec:
    return InputSpec("image", shape, np.dtype(dtype))


def first(inputs: InputSpec, preprocess: str | None = None) -> np.ndarray:
    dataset = data.open("digits:test", [inputs], preprocess=preprocess)
    return next(dataset.batches(2))["image"]


RAW = load_digits().images[:1]


def test_digits_are_scaled_and_enlarged_by_repeating() -> None:
    found = first(spec("N", 1, 32, 16))[:1]
    expected = np.kron(RAW / 16, np.ones((1, 4, 2)))[:, None]
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_digits_of_other_sizes_are_interpolated() -> None:
    found = first(spec("N", 1, 28, 28))
    assert found.shape == (2, 1, 28, 28)
    assert 0 <= found.min() < found.max() <= 1
    assert abs(found[0].mean() - RAW.mean() / 16) < 0.02


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("N", 1, 8, 8), (2, 1, 8, 8)),
        (("N", 8, 8, 1), (2, 8, 8, 1)),
        (("N", 3, 16, 16), (2, 3, 16, 16)),
        (("N", 16, 16, 3), (2, 16, 16, 3)),
        (("N", 8, 16), (2, 8, 16)),
        (("N", 64), (2, 64)),
        (("N", 784), (2, 784)),
        (("N", 3072), (2, 3072)),
        (("N", "D"), (2, 64)),
        (("N", 1, "H", "W"), (2, 1, 8, 8)),
        (("N", None, None, 3), (2, 8, 8, 3)),
        ((-1, 3, -1, 24), (2, 3, 8, 24)),
    ],
)
def test_layouts(shape: Shape, expected: tuple[int, ...]) -> None:
    assert first(InputSpec("image", shape, np.dtype(np.float32))).shape == expected


def test_the_order_of_axes_is_right() -> None:
    flat = first(spec("N", 64))
    planes = first(spec("N", 1, 8, 8))
    last = first(spec("N", 8, 8, 1))
    np.testing.assert_array_equal(flat.reshape(2, 1, 8, 8), planes)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), planes)
    np.testing.assert_array_equal(first(spec("N", 3, 8, 8))[:, 2:], planes)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.uint8, 255 / 16), (np.int64, 255 / 16), (np.float16, 1 / 16)]
)
def test_dtypes(dtype: type, scale: float) -> None:
    found = first(spec("N", 1, 8, 8, dtype=dtype))
    assert found.dtype == dtype
    expected = np.rint(RAW * scale) if scale > 1 else RAW * scale
    np.testing.assert_allclose(found[0, 0], expected[0], atol=1e-3)


def test_an_unknown_shape_takes_the_images_as_they_are() -> None:
    assert first(InputSpec("image", None, np.dtype(np.float32))).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("inputs", "preprocess", "message"),
    [
        ([spec("N", 4, 8, 8)], None, r"do not fit input 'image' of shape \(N, 4, 8, 8\)"),
        ([spec("N", 65)], None, "do not fit"),
        ([spec("N")], None, "do not fit"),
        ([spec("N", 1, 8, 8), InputSpec("b", (), np.dtype(bool))], None, "the model has 2"),
        ([spec("N", 1, 8, 8, dtype=np.int8)], None, "0..255 do not fit input 'image' of int8"),
        ([spec("N", 1, 8, 8, dtype=bool)], None, "takes bool"),
        ([spec("N", 1, 8, 8, dtype=np.uint8)], "unit", "takes pixels 0..255, got 'unit'"),
        ([spec("N", 1, 8, 8)], "imagenet", "is for 3 channels, input 'image' has 1"),
    ],
)
def test_inputs_that_take_no_images_are_refused(
    inputs: list[InputSpec], preprocess: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        data.open("digits", inputs, preprocess=preprocess)


def test_an_unbound_set_refuses_what_it_cannot_prepare() -> None:
    dataset = data.open("digits", preprocess="imagenet")
    with pytest.raises(DataError, match="is for 3 channels"):
        next(dataset.batches(1))
    (batch,) = dataset.take(1).bind([spec("N", 3, 8, 8)]).batches(1)
    assert batch["image"].shape == (1, 3, 8, 8)


def test_preparation_is_part_of_the_fingerprint() -> None:
    ways = [
        data.open("digits", [spec("N", 1, 8, 8)]),
        data.open("digits", [spec("N", 1, 16, 16)]),
        data.open("digits", [spec("N", 8, 8, 1)]),
        data.open("digits", [spec("N", 1, 8, 8)], preprocess="raw"),
        data.open("digits", [spec("N", 1, 8, 8)], split="test"),
    ]
    assert len({dataset.fingerprint() for dataset in ways}) == len(ways)


def test_a_store_of_parts_is_gathered_in_order() -> None:
    images = np.arange(7 * 2 * 2, dtype=np.uint8).reshape(7, 2, 2, 1)
    store = PixelStore((images[:3], images[3:]), (np.arange(3), np.arange(3, 7)), "id")
    order = np.array([6, 0, 3, 2])
    np.testing.assert_array_equal(store.pixels(order, Frame(2, 2, 1)), images[order])
    assert store.labels(order).tolist() == order.tolist()


def test_colour_becomes_luma() -> None:
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 255
    store = PixelStore((red,), (np.zeros(1),), "id")
    assert np.unique(store.pixels(np.array([0]), Frame(4, 4, 1))).tolist() == [76]
