"""Mirrored data: every row again, images turned left to right."""

from __future__ import annotations

import numpy as np

from graphopt.data import Dataset
from graphopt.data.mirroring import mirrored


def test_images_come_again_mirrored_and_the_rest_as_it_is() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "first": rng.standard_normal((5, 3, 4, 6)).astype(np.float32),
        "last": rng.standard_normal((5, 8, 6, 3)).astype(np.float32),
        "plain": rng.standard_normal((5, 7)).astype(np.float32),
    }
    data = mirrored(Dataset.from_arrays(arrays, np.arange(5)).take(3))
    assert len(data) == 6
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    batches = list(data.batches(4))
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in arrays}
    np.testing.assert_array_equal(joined["first"][:3], arrays["first"][:3])
    np.testing.assert_array_equal(joined["first"][3:], arrays["first"][:3, :, :, ::-1])
    np.testing.assert_array_equal(joined["last"][3:], arrays["last"][:3, :, ::-1])
    np.testing.assert_array_equal(joined["plain"][3:], arrays["plain"][:3])
