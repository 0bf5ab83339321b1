"""Lowerings of LSTM, GRU and RNN: torch's kernels where they fit, a loop over time elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from graphopt.lens.cells import ACTIVATIONS, STEPS, Activation, Cell
from graphopt.lens.site import Emitted, Row, Site

__all__ = ["ROWS"]

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}
_DEFAULTS = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}
_TORCH_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where torch's gates are among ONNX's: (input, output, forget, cell) and (update, reset, new)."""

_KERNELS: Mapping[tuple[str, str], Callable[..., tuple[torch.Tensor, ...]]] = {
    ("LSTM", "Tanh"): torch.lstm,
    ("GRU", "Tanh"): torch.gru,
    ("RNN", "Tanh"): torch.rnn_tanh,
    ("RNN", "Relu"): torch.rnn_relu,
}


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent node does besides its weights."""

    kind: str
    hidden: int
    direction: str
    batch_first: bool
    cells: tuple[Cell, ...]
    """One per direction."""

    @property
    def gates(self) -> int:
        return _GATES[self.kind]

    @property
    def directions(self) -> int:
        return len(self.cells)


def _activations(site: Site, directions: int) -> tuple[tuple[Activation, ...], ...]:
    defaults = _DEFAULTS[site.op]
    names = site.texts("activations") or defaults * directions
    alphas = list(site.attributes.get("activation_alpha") or ())  # type: ignore[call-overload]
    betas = list(site.attributes.get("activation_beta") or ())  # type: ignore[call-overload]
    made = []
    for name in names:
        rule = ACTIVATIONS.get(name.lower())
        if rule is None:
            site.refuse(f"there is no activation {name!r}")
        alpha = alphas.pop(0) if rule.alpha is not None and alphas else rule.alpha
        beta = betas.pop(0) if rule.beta is not None and betas else rule.beta
        made.append(Activation(rule.function, alpha, beta))
    count = len(defaults)
    return tuple(tuple(made[i * count : (i + 1) * count]) for i in range(directions))


def _recurrence(site: Site) -> Recurrence:
    direction = site.text("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    clip = site.number("clip", 0.0) if "clip" in site.attributes else None
    cells = tuple(
        Cell(
            activations,
            clip,
            input_forget=site.flag("input_forget"),
            reset_after=site.flag("linear_before_reset"),
        )
        for activations in _activations(site, directions)
    )
    hidden = site.integer("hidden_size", 0) or _hidden(site)
    return Recurrence(site.op, hidden, direction, site.flag("layout"), cells)


def _hidden(site: Site) -> int:
    shape = site.graph.shape(site.name(2))
    if shape is None or not isinstance(shape[-1], int):
        site.refuse("its hidden size is not known")
    return shape[-1]


def _kernel(site: Site, what: Recurrence) -> Callable[..., tuple[torch.Tensor, ...]] | None:
    """Torch's kernel for the node, if it is one of those torch has."""
    names = site.texts("activations") or _DEFAULTS[what.kind] * what.directions
    plain = all(a.is_plain for cell in what.cells for a in cell.activations)
    expected = {name.lower() for name in _DEFAULTS[what.kind]}
    if what.kind == "RNN" and {name.lower() for name in names} == {"relu"}:
        expected = {"relu"}
    same = [n.lower() for n in names] == [
        d.lower() for d in (_DEFAULTS[what.kind] if expected != {"relu"} else ("relu",))
    ] * what.directions
    extras = site.has(4) or site.has(7) or what.cells[0].clip or what.cells[0].input_forget
    if extras or not same or not plain or what.direction == "reverse":
        return None
    if what.kind == "GRU" and not what.cells[0].reset_after:
        return None
    return _KERNELS[what.kind, "Relu" if expected == {"relu"} else "Tanh"]


def _blocks(tensor: torch.Tensor, what: Recurrence) -> torch.Tensor:
    """Gates of one direction, (gates * hidden, ...), in torch's order."""
    parts = tensor.chunk(what.gates)
    return torch.cat([parts[place] for place in _TORCH_ORDER[what.kind]])


def run_kernel(
    x: torch.Tensor,
    weight: torch.Tensor,
    recurrent: torch.Tensor,
    bias: torch.Tensor | None,
    states: Sequence[torch.Tensor | None],
    *,
    what: Recurrence,
    kernel: Callable[..., tuple[torch.Tensor, ...]],
) -> tuple[torch.Tensor, ...]:
    """Run torch's kernel; outputs as ONNX orders them."""
    if what.batch_first:
        x = x.transpose(0, 1)
    flat: list[torch.Tensor] = []
    for direction in range(what.directions):
        flat += [_blocks(weight[direction], what), _blocks(recurrent[direction], what)]
        if bias is not None:
            flat += [_blocks(half, what) for half in bias[direction].chunk(2)]
    start = [_initial(state, x, what) for state in states[: _STATES[what.kind]]]
    initial = start if what.kind == "LSTM" else start[0]
    bidirectional = what.directions == 2
    made = kernel(x, initial, flat, bias is not None, 1, 0.0, False, bidirectional, False)
    out = made[0].reshape(*x.shape[:2], what.directions, what.hidden).transpose(1, 2)
    return _oriented(out, made[1:], what)


def _initial(state: torch.Tensor | None, x: torch.Tensor, what: Recurrence) -> torch.Tensor:
    if state is None:
        return x.new_zeros(what.directions, x.shape[1], what.hidden)
    return (state.transpose(0, 1) if what.batch_first else state).contiguous()


def _oriented(
    out: torch.Tensor, last: Sequence[torch.Tensor], what: Recurrence
) -> tuple[torch.Tensor, ...]:
    """Outputs (time, directions, batch, hidden), or with the batch first."""
    if not what.batch_first:
        return out, *last
    return out.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last)


def run_loop(
    x: torch.Tensor,
    weight: torch.Tensor,
    recurrent: torch.Tensor,
    bias: torch.Tensor | None,
    states: Sequence[torch.Tensor | None],
    lengths: torch.Tensor | None,
    peepholes: torch.Tensor | None,
    *,
    what: Recurrence,
) -> tuple[torch.Tensor, ...]:
    """Step through time, direction by direction."""
    if what.batch_first:
        x = x.transpose(0, 1)
    start = [_initial(state, x, what) for state in states[: _STATES[what.kind]]]
    outs, lasts = [], []
    for direction, cell in enumerate(what.cells):
        backwards = what.direction == "reverse" or direction == 1
        shift = weight.new_zeros(2 * what.gates * what.hidden) if bias is None else bias[direction]
        peep = None if peepholes is None else peepholes[direction].chunk(3)
        inner, outer = shift.chunk(2)
        gates = functional.linear(x, weight[direction], inner)
        state = tuple(initial[direction] for initial in start)
        matrices = recurrent[direction], outer
        out, state = _steps(gates, state, matrices, peep, cell, what, lengths, backwards=backwards)
        outs.append(out)
        lasts.append(state)
    last = [torch.stack(parts) for parts in zip(*lasts, strict=True)]
    return _oriented(torch.stack(outs, 1), last, what)


def _steps(
    gates: torch.Tensor,
    state: tuple[torch.Tensor, ...],
    matrices: tuple[torch.Tensor, torch.Tensor],
    peepholes: tuple[torch.Tensor, ...] | None,
    cell: Cell,
    what: Recurrence,
    lengths: torch.Tensor | None,
    *,
    backwards: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """All steps of one direction; beyond a sequence's length its state stays and it gives 0."""
    step = STEPS[what.kind]
    count = gates.shape[0]
    outs: list[torch.Tensor] = [gates] * count
    for time in reversed(range(count)) if backwards else range(count):
        new = step(gates[time], state, matrices, peepholes, cell)
        out = new[0]
        if lengths is not None:
            alive = (lengths > time).unsqueeze(-1)
            pairs = zip(new, state, strict=True)
            new = tuple(torch.where(alive, now, before) for now, before in pairs)
            out = torch.where(alive, out, torch.zeros_like(out))
        outs[time], state = out, new
    return torch.stack(outs), state


def _recurrent(site: Site) -> Emitted:
    what = _recurrence(site)
    states = (site.optional(5), site.optional(6) if what.kind == "LSTM" else None)
    args = site.arg(0), site.arg(1), site.arg(2), site.optional(3), states
    kernel = _kernel(site, what)
    if kernel is not None:
        made = site.bound(run_kernel, *args, what=what, kernel=kernel)
    else:
        peepholes = site.optional(7) if what.kind == "LSTM" else None
        made = site.bound(run_loop, *args, site.optional(4), peepholes, what=what)
    return site.unpack(made, 1 + _STATES[what.kind])


ROWS: Mapping[str, Row] = {"GRU": _recurrent, "LSTM": _recurrent, "RNN": _recurrent}
