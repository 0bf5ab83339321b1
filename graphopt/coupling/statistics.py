"""What calibration has measured of families of channels, for the criteria that need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

__all__ = ["GRADIENTS", "Activation", "Measure", "Reading", "Scores", "Sensitivity", "Statistics"]

Scores = npt.NDArray[np.float64]
"""One number per channel of a family."""


class Measure(StrEnum):
    """What a criterion needs to have been measured."""

    ACTIVATIONS = "activations"
    READINGS = "readings"
    ACTIVATION_GRADIENTS = "activation-gradients"
    WEIGHT_GRADIENTS = "weight-gradients"


GRADIENTS = frozenset({Measure.ACTIVATION_GRADIENTS, Measure.WEIGHT_GRADIENTS})
"""What only the trainable view can measure."""


@dataclass(frozen=True, eq=False)
class Activation:
    """What the values of one computed tensor were like, per channel of a family.

    `zeros` is the fraction of values that were exactly 0, `read` whether a layer sums over the
    channels of this tensor.
    """

    tensor: str
    read: bool
    mean: Scores
    variance: Scores
    mean_abs: Scores
    zeros: Scores


@dataclass(frozen=True, eq=False)
class Reading:
    """What the channels of a family give to one layer that sums over them.

    `gram[c, d]` is the mean product of what channels c and d contribute to the same output, over
    outputs, so v' gram v is the mean square of the part that the channels in v contribute.
    `curvature` is the error that each channel's weights would cost one by one: their squares times
    the mean square of what they multiply.
    """

    node: str
    gram: npt.NDArray[np.float64]
    curvature: Scores


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What gradients say of a family: how the loss of one input changes without each channel.

    `activations` has a row for each tensor that a layer reads: |value times gradient, averaged
    over places|, averaged over inputs. `weights` is the squared sum of weight times gradient over
    all weights that go with a channel, averaged over inputs; `gates` the same over the scales and
    shifts of BatchNormalization alone. None where there are none.
    """

    activations: tuple[Scores, ...] = ()
    weights: Scores | None = None
    gates: Scores | None = None


@dataclass(frozen=True)
class Statistics:
    """By the name of the family; empty where nothing was measured."""

    activations: Mapping[str, tuple[Activation, ...]] = field(default_factory=dict)
    readings: Mapping[str, tuple[Reading, ...]] = field(default_factory=dict)
    seed: int = 0
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
