"""Lowerings of If, Loop and Scan: bodies are modules, run by Python as the data decide."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import onnx_graphsurgeon as gs
import torch
from torch import nn

from graphopt.lens.site import Emitted, Row, Site

__all__ = ["ROWS", "Branches", "Repetition", "Scanning"]

Tensors = tuple[torch.Tensor, ...]


class Branches(nn.Module):
    """Run one of two bodies; each takes a share of the borrowed values."""

    def __init__(self, bodies: tuple[nn.Module, nn.Module], shares: tuple[int, int]) -> None:
        super().__init__()
        self.then_branch, self.else_branch = bodies
        self.shares = shares

    def forward(self, condition: torch.Tensor, *borrowed: torch.Tensor) -> Tensors:
        first = self.shares[0]
        if bool(condition):
            chosen: Tensors = self.then_branch(*borrowed[:first])
        else:
            chosen = self.else_branch(*borrowed[first:])
        return chosen


def _body(site: Site, key: str) -> gs.Graph:
    body = site.attributes[key]
    assert isinstance(body, gs.Graph), f"{site.op}.{key} is a body"
    return body


def _if(site: Site) -> Emitted:
    keys = ("then_branch", "else_branch")
    then, other = (site.around.body(_body(site, key)) for key in keys)
    borrowed = [site.around.value(name) for name in (*then[1], *other[1])]
    module = Branches((then[0], other[0]), (len(then[1]), len(other[1])))
    return site.unpack(site.module(module, site.arg(0), *borrowed), len(site.node.outputs))


class Repetition(nn.Module):
    """Run a body while its condition holds; carried values go round, scanned ones are stacked."""

    def __init__(self, body: nn.Module, carried: int) -> None:
        super().__init__()
        self.body = body
        self.carried = carried

    def forward(
        self,
        trips: torch.Tensor | None,
        condition: torch.Tensor | None,
        *values: torch.Tensor,
    ) -> Tensors:
        state, borrowed = values[: self.carried], values[self.carried :]
        limit = None if trips is None else int(trips)
        alive = True if condition is None else bool(condition)
        rows: list[Tensors] = []
        for step in itertools.count():
            if not alive or (limit is not None and step >= limit):
                break
            index = torch.tensor(step, dtype=torch.int64)
            made: Tensors = self.body(index, torch.tensor(alive), *state, *borrowed)
            alive, state = bool(made[0]), made[1 : 1 + self.carried]
            rows.append(made[1 + self.carried :])
        return *state, *(torch.stack(column) for column in zip(*rows, strict=True))


def _loop(site: Site) -> Emitted:
    body, names = site.around.body(_body(site, "body"))
    borrowed = [site.around.value(name) for name in names]
    carried = len(site) - 2
    state = [site.arg(2 + place) for place in range(carried)]
    module = Repetition(body, carried)
    made = site.module(module, site.optional(0), site.optional(1), *state, *borrowed)
    return site.unpack(made, len(site.node.outputs))


class Scanning(nn.Module):
    """Run a body along axes of its scanned inputs, and stack its scanned outputs along axes."""

    def __init__(
        self,
        body: nn.Module,
        carried: int,
        inputs: tuple[tuple[int, bool], ...],
        outputs: tuple[tuple[int, bool], ...],
    ) -> None:
        """Inputs and outputs that are scanned: (axis, whether backwards)."""
        super().__init__()
        self.body = body
        self.carried = carried
        self.inputs = inputs
        self.outputs = outputs

    def forward(self, *values: torch.Tensor) -> Tensors:
        end = self.carried + len(self.inputs)
        state, scanned, borrowed = values[: self.carried], values[self.carried : end], values[end:]
        columns = [
            [part.squeeze(axis) for part in torch.split(value, 1, axis)][:: -1 if back else 1]
            for value, (axis, back) in zip(scanned, self.inputs, strict=True)
        ]
        rows: list[Tensors] = []
        for step in zip(*columns, strict=True):
            made: Tensors = self.body(*state, *step, *borrowed)
            state = made[: self.carried]
            rows.append(made[self.carried :])
        stacks = [
            torch.stack(column[:: -1 if back else 1], axis)
            for column, (axis, back) in zip(zip(*rows, strict=True), self.outputs, strict=True)
        ]
        return *state, *stacks


def _scan(site: Site) -> Emitted:
    if site.opset < 9:
        site.refuse("Scan of operator set 8 runs over batches")
    scope = _body(site, "body")
    body, names = site.around.body(scope)
    count = site.integer("num_scan_inputs", 1)
    carried = len(site) - count
    module = Scanning(
        body,
        carried,
        _scanned(site, "scan_input", count),
        _scanned(site, "scan_output", len(scope.outputs) - carried),
    )
    borrowed = [site.around.value(name) for name in names]
    return site.unpack(site.module(module, *site.args(), *borrowed), len(site.node.outputs))


def _scanned(site: Site, what: str, count: int) -> tuple[tuple[int, bool], ...]:
    axes = site.integers(f"{what}_axes") or (0,) * count
    back = site.integers(f"{what}_directions") or (0,) * count
    return tuple((axis, bool(flag)) for axis, flag in zip(axes, back, strict=True))


ROWS: Mapping[str, Row] = {"If": _if, "Loop": _loop, "Scan": _scan}
