"""A teacher's outputs: computed beside the student's, or once where inputs come again."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import torch
from lightning_fabric import Fabric

from graphopt.lens import LoweredModule
from graphopt.train.batches import Batch, Feed, Outputs
from graphopt.train.formats import as_outputs, widened
from graphopt.train.rows import free_bytes, placed

__all__ = ["Teacher"]

_SHARE = 0.1
"""The part of the free memory that kept outputs may take."""


class Teacher:
    """A network in eval() mode that answers batches; it is placed like the student."""

    def __init__(self, module: LoweredModule, fabric: Fabric) -> None:
        self._module, self._fabric = module.requires_grad_(False).eval(), fabric
        self._kept: Outputs = ()
        """For each output (variants, rows, ...)."""
        self._row = np.empty(0, np.int64)

    def teach(self, batch: Batch) -> Batch:
        """The batch with the teacher's outputs."""
        if self._kept and batch.places is not None:
            return replace(batch, taught=self._recalled(batch))
        return replace(batch, taught=self._computed(batch))

    def learn_by_heart(self, feed: Feed, *, most_epochs: float, seconds: float) -> bool:
        """Keep the outputs for all inputs, if they come again and there is room and time for it.

        They are computed batch by batch in order, so that a resumed training sees the same.
        """
        if not feed.repeats or most_epochs < 2 * feed.repeats:
            return False
        places, began = feed.trained, time.perf_counter()
        kept: list[Outputs] = []
        batches = feed.repeats * math.ceil(len(places) / feed.batch)
        for variant in range(feed.repeats):
            answers: list[Outputs] = []
            for batch in feed.in_order(places, variant):
                outputs = self._computed(batch)
                answers.append(outputs)
                if not kept and len(answers) == 1:
                    bytes_each = sum(tensor.nbytes for tensor in outputs)
                    room = _SHARE * free_bytes(batch.inputs[0].device)
                    spent = time.perf_counter() - began
                    if batches * bytes_each > room or batches * spent > seconds:
                        return False
            kept.append(tuple(torch.cat(parts) for parts in zip(*answers, strict=True)))
        if any(len(tensor) != len(places) for outputs in kept for tensor in outputs):
            return False
        self._kept = tuple(torch.stack(parts) for parts in zip(*kept, strict=True))
        self._row = np.zeros(int(places.max()) + 1, np.int64)
        self._row[places] = np.arange(len(places))
        return True

    def _computed(self, batch: Batch) -> Outputs:
        with torch.no_grad(), self._fabric.autocast():
            return widened(as_outputs(self._module(*batch.inputs)))

    def _recalled(self, batch: Batch) -> Outputs:
        assert batch.places is not None, "only inputs that come again are recalled"
        assert batch.variant is not None, "the feed says which variants they are"
        device = batch.inputs[0].device
        row, variant = (placed(p, device) for p in (self._row[batch.places], batch.variant))
        return tuple(tensor[variant, row] for tensor in self._kept)
