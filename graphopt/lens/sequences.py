"""Lowerings of operators on sequences, which are Python lists in the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from graphopt.lens.site import Row, Site

__all__ = ["ROWS"]

Tensors = list[torch.Tensor]


def listed(*items: torch.Tensor) -> Tensors:
    return list(items)


def _construct(site: Site) -> fx.Node:
    return site.call(listed, *site.args())


def _empty(site: Site) -> fx.Node:
    return site.call(listed)


def element(items: Tensors, place: torch.Tensor) -> torch.Tensor:
    return items[int(place)]


def _at(site: Site) -> fx.Node:
    return site.call(element, site.arg(0), site.arg(1))


def inserted(items: Tensors, item: torch.Tensor, place: torch.Tensor | None) -> Tensors:
    at = len(items) if place is None else int(place)
    at = at + len(items) if at < 0 else at
    return [*items[:at], item, *items[at:]]


def _insert(site: Site) -> fx.Node:
    return site.call(inserted, site.arg(0), site.arg(1), site.optional(2))


def erased(items: Tensors, place: torch.Tensor | None) -> Tensors:
    at = -1 if place is None else int(place)
    return [item for index, item in enumerate(items) if index != at % len(items)]


def _erase(site: Site) -> fx.Node:
    return site.call(erased, site.arg(0), site.optional(1))


def length(items: Tensors) -> torch.Tensor:
    return torch.tensor(len(items), dtype=torch.int64)


def _length(site: Site) -> fx.Node:
    return site.call(length, site.arg(0))


def parts(x: torch.Tensor, sizes: torch.Tensor | None, axis: int, *, keep: bool) -> Tensors:
    """Cut along an axis: by one size, by several, or element by element."""
    if sizes is None:
        pieces = list(torch.split(x, 1, axis))
        return pieces if keep else [piece.squeeze(axis) for piece in pieces]
    lengths: Sequence[int] = sizes.reshape(-1).tolist()
    return list(torch.split(x, lengths[0] if sizes.dim() == 0 else list(lengths), axis))


def _split(site: Site) -> fx.Node:
    keep = site.flag("keepdims", default=True)
    return site.call(parts, site.arg(0), site.optional(1), site.integer("axis", 0), keep=keep)


def _concat(site: Site) -> fx.Node:
    function = torch.stack if site.flag("new_axis") else torch.cat
    return site.call(function, site.arg(0), site.integer("axis", 0))


ROWS: Mapping[str, Row] = {
    "ConcatFromSequence": _concat,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SplitToSequence": _split,
}
