"""Batches for training, drawn from a seed and a step alone, so that a resumed run draws alike."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from graphopt.errors import RecipeError
from graphopt.train.augmenting import COLUMNS, channel_axis, draw_variants, variants
from graphopt.train.rows import Rows, ahead, placed

__all__ = ["Batch", "Drawing", "Feed", "Outputs", "Places", "laid_out"]

Outputs = tuple[torch.Tensor, ...]
"""What a network gives, in the graph's order."""

Places = npt.NDArray[np.int64]

_BLEND = 0.2
"""Mixup draws the share of the first image from Beta(0.2, 0.2), as Zhang et al. (2018)."""


@dataclass(frozen=True)
class Batch:
    """Inputs in the graph's order; labels if there are any; what a teacher says, if there is one.

    With mixup an input is `share` of one image and the rest of another, whose label is in
    `partners`. `places` are positions in the data set, `variant` which of its variants each row is;
    both are None for inputs that will not come again.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None = None
    taught: Outputs = ()
    partners: torch.Tensor | None = None
    share: float = 1.0
    places: Places | None = None
    variant: Places | None = None


@dataclass(frozen=True)
class _Draw:
    """Which rows, how each is varied, and which of the variants that come again that is."""

    places: Places
    drawn: Places
    variant: Places

    def take(self, chosen: slice | Places) -> _Draw:
        return _Draw(self.places[chosen], self.drawn[chosen], self.variant[chosen])


@dataclass(frozen=True)
class _Lot:
    """Everything that is random about one batch of one process."""

    own: _Draw
    partners: _Draw | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Drawing:
    """How batches are drawn: that of all processes together, of which each takes its part."""

    batch: int
    """Rows for each process."""
    augment: tuple[str, ...] = ()
    shift: int | None = None
    """The most pixels that images are shifted by; None: an eighth of their size."""
    variants: int = 0
    """How many there are of each row; 0: any number."""
    seed: int = 0
    rank: int = 0
    processes: int = 1


class Feed:
    """Training batches step by step, and the held-out rows in order.

    Images have their channels last in memory if `channels_last` is set.
    """

    def __init__(self, rows: Rows, trained: Places, drawing: Drawing) -> None:
        self.rows, self.trained, self.batch = rows, trained, drawing.batch
        self.channels_last = False
        self._augment, self._shift, self._seed = drawing.augment, drawing.shift, drawing.seed
        self._variants = drawing.variants if drawing.augment else 0
        self._drawn: tuple[int, Places] | None = None
        self._mine = slice(drawing.rank * self.batch, (drawing.rank + 1) * self.batch)
        self._whole = self.batch * drawing.processes
        self._image, self._size = _image_input(rows, self._augment)
        if self._shift is not None and self._shift >= min(self._size):
            height, width = self._size
            raise RecipeError(
                f"train: shift={self._shift} leaves nothing of images of {height}x{width}; "
                f"give fewer pixels"
            )
        self.epoch_steps = max(len(trained) // self._whole, 1)

    @property
    def repeats(self) -> int:
        """In how many variants inputs come again; 0 if they do not."""
        if self._variants or not self._augment:
            return self._variants or 1
        return 2 if self._augment == ("flip",) else 0

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """The batch of step `start` and of all that follow, without end."""
        lots = ((lot, *self._read(lot)) for lot in self._lots(start))
        with closing(lots if self.rows.in_memory else ahead(lots)) as read:
            for lot, own, other in read:
                yield self._made(lot, own, other)

    def in_order(self, places: Places, variant: int | None = None) -> Iterator[Batch]:
        """Rows as they are, or all in one of their variants, in full batches but for the last."""
        for begin in range(0, len(places), self.batch):
            some = places[begin : begin + self.batch]
            inputs = self.rows.read(some)
            if variant is not None:
                inputs = self._varied(inputs, self._variant(some, variant))
            yield Batch(self._laid_out(inputs), self.rows.labels(some))

    def _variant(self, places: Places, number: int) -> Places:
        """How rows are varied in one of the variants that come again."""
        if not self._variants:
            drawn = np.full((len(places), COLUMNS), -1, np.int64)
            drawn[:, 0] = number
            return drawn
        if self._drawn is None or self._drawn[0] != number:
            rng = np.random.default_rng([self._seed, 2, number])
            table = self._draw_variants(rng, len(self.trained))
            self._drawn = number, table
        return self._drawn[1][np.searchsorted(self.trained, places)]

    def _draw_variants(self, rng: np.random.Generator, count: int) -> Places:
        return draw_variants(rng, count, self._size, self._augment, self._shift)

    def _lots(self, start: int) -> Iterator[_Lot]:
        order, at, step = self.trained, -1, start
        while True:
            if step // self.epoch_steps != at:
                at = step // self.epoch_steps
                order = np.random.default_rng([self._seed, 1, at]).permutation(self.trained)
            place = step % self.epoch_steps * self._whole
            yield self._lot(order[place : place + self._whole], step)
            step += 1

    def _lot(self, places: Places, step: int) -> _Lot:
        if self._variants:
            number = step // self.epoch_steps % self._variants
            drawn = self._variant(places, number)
            return _Lot(_Draw(places, drawn, np.full(len(places), number)).take(self._mine))
        rng = np.random.default_rng([self._seed, 2, step])
        drawn = self._draw_variants(rng, len(places))
        draw = _Draw(places, drawn, np.maximum(drawn[:, 0], 0))
        if "mixup" not in self._augment:
            return _Lot(draw.take(self._mine))
        share, others = float(rng.beta(_BLEND, _BLEND)), rng.permutation(len(places))
        return _Lot(draw.take(self._mine), draw.take(others[self._mine]), share)

    def _read(self, lot: _Lot) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        own = self.rows.read(lot.own.places)
        return own, self.rows.read(lot.partners.places) if lot.partners else ()

    def _made(
        self, lot: _Lot, own: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]
    ) -> Batch:
        inputs = self._varied(own, lot.own.drawn)
        batch = Batch(self._laid_out(inputs), self.rows.labels(lot.own.places))
        if lot.partners is not None:
            beside = self._varied(other, lot.partners.drawn)
            blended = tuple(
                lot.share * a + (1 - lot.share) * b if place == self._image else a
                for place, (a, b) in enumerate(zip(inputs, beside, strict=True))
            )
            partners = self.rows.labels(lot.partners.places)
            blended = self._laid_out(blended)
            return replace(batch, inputs=blended, partners=partners, share=lot.share)
        if self.repeats:
            return replace(batch, places=lot.own.places, variant=lot.own.variant)
        return batch

    def _laid_out(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return laid_out(inputs) if self.channels_last else inputs

    def _varied(self, inputs: tuple[torch.Tensor, ...], drawn: Places) -> tuple[torch.Tensor, ...]:
        if not self._augment:
            return inputs
        place = self._image
        image = inputs[place]
        image = variants(image, placed(drawn, image.device), self._augment)
        return (*inputs[:place], image, *inputs[place + 1 :])


def laid_out(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Tensors of four axes with the channels last in memory."""
    return tuple(
        tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for tensor in tensors
    )


def _image_input(rows: Rows, augment: tuple[str, ...]) -> tuple[int, tuple[int, int]]:
    """Which input is a batch of images, and their size. Raises RecipeError if it must be one."""
    for place, shape in enumerate(rows.shapes):
        axis = channel_axis(shape)
        if axis is not None:
            return place, ((shape[2], shape[3]) if axis == 1 else (shape[1], shape[2]))
    if augment:
        found = ", ".join(str(tuple(shape)) for shape in rows.shapes)
        raise RecipeError(
            f"train: {augment[0]} takes images, with 1, 3 or 4 channels, and the model's inputs "
            f"are {found}; train without augmentation"
        )
    return 0, (0, 0)
