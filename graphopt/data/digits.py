"""The 1,797 handwritten digits that come with scikit-learn."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from sklearn.datasets import load_digits

from graphopt.data.pixels import PixelStore

__all__ = ["digits"]


def digits(part: Literal["train", "test"]) -> PixelStore:
    """8 x 8 images with values 0..16; every fifth, from the first, is for testing.

    The split is fixed: networks that come with the project were trained on its `train` part.
    """
    pixels, labels = load_digits(return_X_y=True)
    chosen = (np.arange(len(labels)) % 5 == 0) == (part == "test")
    images = pixels[chosen].astype(np.float32).reshape(-1, 8, 8, 1)
    identity = f"digits {hashlib.sha256(images.tobytes()).hexdigest()}"
    return PixelStore((images,), (labels[chosen],), identity, peak=16.0, blocky=True)
