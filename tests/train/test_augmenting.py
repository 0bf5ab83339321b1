"""Variants of images: each does what it says and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphopt.train.augmenting import COLUMNS, channel_axis, draw_variants, variants


def drawn(**columns: int) -> torch.Tensor:
    table = torch.full((1, COLUMNS), -1, dtype=torch.int64)
    for name, value in columns.items():
        table[0, ("mirrored", "down", "right", "row", "column").index(name)] = value
    return table


@pytest.fixture
def image() -> torch.Tensor:
    return torch.arange(1, 1 + 3 * 16 * 16, dtype=torch.float32).reshape(1, 3, 16, 16)


def test_mirroring_twice_is_nothing(image: torch.Tensor) -> None:
    once = variants(image, drawn(mirrored=1), ("flip",))
    assert torch.equal(once, image.flip(3))
    assert torch.equal(variants(once, drawn(mirrored=1), ("flip",)), image)
    assert torch.equal(variants(image, drawn(mirrored=0), ("flip",)), image)


def test_a_shift_of_no_pixels_is_nothing(image: torch.Tensor) -> None:
    assert torch.equal(variants(image, drawn(down=0, right=0), ("crop",)), image)


def test_shifts_move_zeros_in(image: torch.Tensor) -> None:
    moved = variants(image, drawn(down=-2, right=1), ("crop",))
    assert torch.equal(moved[:, :, 2:, :15], image[:, :, :14, 1:])
    assert float(moved[:, :, :2].abs().sum() + moved[:, :, :, 15].abs().sum()) == 0


def test_a_hole_is_a_quarter_wide(image: torch.Tensor) -> None:
    holed = variants(image, drawn(row=8, column=3), ("cutout",))
    blank = torch.zeros(16, 16, dtype=torch.bool)
    blank[6:10, 1:5] = True
    assert torch.equal(holed == 0, blank.expand(1, 3, 16, 16))
    assert torch.equal(holed[..., ~blank], image[..., ~blank])


def test_holes_may_hang_over_the_edge(image: torch.Tensor) -> None:
    holed = variants(image, drawn(row=0, column=15), ("cutout",))
    assert int((holed[0, 0] == 0).sum()) == 2 * 3


def test_channels_may_be_last(image: torch.Tensor) -> None:
    table = drawn(mirrored=1, down=-1, right=2, row=5, column=5)
    wanted = ("flip", "crop", "cutout")
    one = variants(image, table, wanted)
    other = variants(image.permute(0, 2, 3, 1), table, wanted)
    assert torch.equal(one, other.permute(0, 3, 1, 2))


def test_each_image_has_its_own_variant(image: torch.Tensor) -> None:
    both = torch.cat([image, image])
    table = torch.cat([drawn(mirrored=1), drawn(mirrored=0)])
    found = variants(both, table, ("flip",))
    assert torch.equal(found, torch.cat([image.flip(3), image]))


def test_draws_reach_all_values_and_no_others() -> None:
    rng = np.random.default_rng(0)
    table = draw_variants(rng, 4000, (32, 16), ("flip", "crop", "cutout"))
    reached = (range(2), range(-4, 5), range(-2, 3), range(32), range(16))
    for column, values in enumerate(reached):
        assert set(table[:, column]) == set(values)


def test_shifts_may_be_by_fewer_pixels() -> None:
    table = draw_variants(np.random.default_rng(0), 400, (32, 16), ("crop",), shift=1)
    assert {tuple(row) for row in table[:, 1:3]} == {(d, r) for d in (-1, 0, 1) for r in (-1, 0, 1)}


def test_one_option_does_not_change_what_others_draw() -> None:
    one = draw_variants(np.random.default_rng(0), 50, (32, 32), ("crop",))
    both = draw_variants(np.random.default_rng(0), 50, (32, 32), ("flip", "crop"))
    assert (one[:, 1:3] == both[:, 1:3]).all()
    assert (one[:, 0] == -1).all()


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 3, 8, 8), 1), ((2, 1, 8, 8), 1), ((2, 8, 8, 3), 3), ((2, 7, 8, 8), None), ((2, 3), None)],
)
def test_what_counts_as_images(shape: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis
