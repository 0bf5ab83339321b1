"""Ties of recurrent cells and of fused attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.coupling.axes import Atoms, Axes, Axis, Fixed, Unfit, size_of
from graphopt.coupling.site import Rules, Site

__all__ = ["SEQUENCES"]

_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def recurrent(site: Site) -> Sequence[Axes | None]:
    """A hidden unit is a row of every gate, a column of R, and an index of every state.

    W (direction, gate * hidden, in), R (direction, gate * hidden, hidden), B (direction,
    2 * gate * hidden); both directions lose the same units, for one attribute says how many.
    """
    if site.attribute("layout", 0):
        raise Unfit("has the batch outermost")
    gates = _GATES[site.node.op]
    data, weight, recurrence = site.axes(0), site.axes(1), site.axes(2)
    hidden = recurrence[2]
    site.wiring.tie(data[2], weight[2])
    _repeat(site, hidden, weight[1], gates)
    _repeat(site, hidden, recurrence[1], gates)
    for axes in (weight, recurrence):
        site.pin(axes[0], "has one of them per direction", quiet=True)
    if site.has(3):
        _repeat(site, hidden, site.axes(3)[1], 2 * gates)
        site.pin(site.axes(3)[0], "has one of them per direction", quiet=True)
    for index in (5, 6):
        if site.has(index):
            state = site.axes(index)
            site.wiring.tie(hidden, state[2])
            site.pin(state[0], "has one of them per direction", quiet=True)
    if site.has(7):
        _repeat(site, hidden, site.axes(7)[1], 3)
        site.pin(site.axes(7)[0], "has one of them per direction", quiet=True)
    directions = site.fixed(size_of(weight[0]), "has one of them per direction", quiet=True)
    last: Axes = (directions, data[1], hidden)
    return [(data[0], directions, data[1], hidden), last, last]


def _repeat(site: Site, unit: Axis, stacked: Axis, times: int) -> None:
    """Tie an axis with one that is `times` copies of it, one after the other."""
    if isinstance(stacked, Fixed):
        site.wiring.pin(unit, stacked)
        return
    if isinstance(unit, Fixed):
        site.wiring.pin(stacked, unit)
        return
    for row in stacked.reshape(times, -1):
        site.wiring.tie(unit, row)


def _heads(site: Site, axis: Axis, count: int) -> Axis:
    """An axis (head, width) reduced to its heads: each head's indices tie together."""
    if isinstance(axis, Fixed):
        return Fixed(count, axis.node, axis.reason, axis.quiet)
    if len(axis) % count:
        raise Unfit(f"{len(axis)} indices are not {count} heads")
    rows: Atoms = axis.reshape(count, -1)
    for column in rows.T[1:]:
        site.wiring.tie(rows[:, 0], column)
    return rows[:, 0]


def _grouped(site: Site, query: Axis, key: Axis) -> None:
    """Tie each key head with the query heads that share it."""
    if isinstance(query, Fixed) or isinstance(key, Fixed):
        for fixed, other in ((query, key), (key, query)):
            if isinstance(fixed, Fixed):
                site.wiring.pin(other, fixed)
        return
    for column in query.reshape(len(key), -1).T:
        site.wiring.tie(key, column)


def _mask_heads(site: Site, index: int, heads: Axis) -> None:
    """An attention mask or bias may have one plane per head."""
    if not site.has(index):
        return
    axes = site.axes(index)
    for place, axis in enumerate(axes, start=-len(axes)):
        if place == -3 and size_of(axis) == size_of(heads) != 1:
            site.wiring.tie(heads, axis)
        else:
            site.pin(axis, "masks positions with it", quiet=True)


def attention(site: Site) -> Sequence[Axes | None]:
    """Whole heads go: (batch, length, head * width) or (batch, head, length, width)."""
    query, key, value = (site.axes(index) for index in range(3))
    if site.has(4) or len(site.node.outputs) > 1:
        raise Unfit("keeps a past")
    flat = len(query) == 3
    place = 2 if flat else 1
    if flat:
        count, shared = site.attribute("q_num_heads", 1), site.attribute("kv_num_heads", 1)
        heads, keys, values = (
            _heads(site, axes[2], number)
            for axes, number in ((query, count), (key, shared), (value, shared))
        )
    else:
        heads, keys, values = query[1], key[1], value[1]
        for axes in (query, key):
            site.pin(axes[3], "scales the scores by it")
    site.wiring.tie(keys, values)
    _grouped(site, heads, keys)
    _mask_heads(site, 3, heads)
    for axes in (query, key, value):
        site.pin(axes[1 if flat else 2], "attends over it", quiet=True)
    batch, length = query[0], query[1 if flat else 2]
    if not flat:
        return [(batch, heads, length, value[3])]
    out = _spread(site, heads, site.shape()[place])
    return [(batch, length, out)]


def _spread(site: Site, heads: Axis, total: int | None) -> Axis:
    """The axis (head, width) of an output that has `total` indices."""
    if isinstance(heads, Fixed) or total is None:
        return site.fixed(total, "attends head by head")
    return np.repeat(heads, total // len(heads))


def projected_attention(site: Site) -> Sequence[Axes | None]:
    """com.microsoft's Attention: one weight (in, query + key + value) and its bias."""
    data, weight = site.axes(0), site.axes(1)
    if site.has(4) or len(site.node.outputs) > 1 or site.attribute("do_rotary", 0):
        raise Unfit("keeps a past or rotates")
    count, total = site.attribute("num_heads", 1), size_of(weight[1])
    if total is None:
        raise Unfit("the width of its weight is open")
    widths = [int(w) for w in site.node.attrs.get("qkv_hidden_sizes", [total // 3] * 3)]
    site.wiring.tie(data[2], weight[0])
    stacked = [weight[1], *([site.axes(2)[0]] if site.has(2) else [])]
    heads: Axis = site.wiring.fresh(count)
    for axis in stacked:
        if isinstance(axis, Fixed):
            site.wiring.pin(heads, axis)
            continue
        for part in np.split(axis, np.cumsum(widths)[:-1]):
            heads = site.wiring.tie(heads, _heads(site, part, count))
    for index in (3, 5):
        _mask_heads(site, index, heads)
    site.pin(data[1], "attends over it", quiet=True)
    return [(data[0], data[1], _spread(site, heads, widths[2]))]


def separate_attention(site: Site) -> Sequence[Axes | None]:
    """com.microsoft's MultiHeadAttention: query, key and value apart, and one bias for them."""
    query, key, value = (site.axes(index) for index in range(3))
    if len(query) != 3 or len(key) != 3 or site.has(6) or len(site.node.outputs) > 1:
        raise Unfit("has packed inputs or keeps a past")
    count = site.attribute("num_heads", 1)
    heads = _heads(site, query[2], count)
    for axes in (key, value):
        heads = site.wiring.tie(heads, _heads(site, axes[2], count))
    if site.has(3):
        bias = site.axes(3)[0]
        ends = np.cumsum([size_of(axes[2]) or 0 for axes in (query, key, value)])
        if isinstance(bias, Fixed):
            site.wiring.pin(heads, bias)
        else:
            for part in np.split(bias, ends[:-1]):
                heads = site.wiring.tie(heads, _heads(site, part, count))
    for index in (4, 5):
        _mask_heads(site, index, heads)
    for axes in (query, key, value):
        site.pin(axes[1], "attends over it", quiet=True)
    return [(query[0], query[1], _spread(site, heads, size_of(value[2])))]


SEQUENCES: Rules = {
    "Attention": attention,
    "GRU": recurrent,
    "LSTM": recurrent,
    "RNN": recurrent,
    "com.microsoft:Attention": projected_attention,
    "com.microsoft:MultiHeadAttention": separate_attention,
}
