"""One step of each recurrent cell, and the activations that ONNX lets it have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["ACTIVATIONS", "STEPS", "Activation", "Cell"]

States = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Activation:
    """A function and its two numbers, None where it has none."""

    function: Callable[[torch.Tensor, float, float], torch.Tensor]
    alpha: float | None = None
    beta: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the function has no numbers of its own."""
        return self.alpha is None and self.beta is None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.alpha or 0.0, self.beta or 0.0)


@dataclass(frozen=True)
class Cell:
    """How one direction computes its gates."""

    activations: tuple[Activation, ...]
    clip: float | None
    input_forget: bool
    """LSTM: the forget gate is one minus the input gate."""
    reset_after: bool
    """GRU: the reset gate scales the product with the state, not the state."""

    def clipped(self, x: torch.Tensor) -> torch.Tensor:
        return x if not self.clip else x.clamp(-self.clip, self.clip)


ACTIVATIONS: Mapping[str, Activation] = {
    "affine": Activation(lambda x, a, b: a * x + b, 1.0, 0.0),
    "elu": Activation(lambda x, a, _: functional.elu(x, a), 1.0),
    "hardsigmoid": Activation(lambda x, a, b: (a * x + b).clamp(0, 1), 0.2, 0.5),
    "leakyrelu": Activation(lambda x, a, _: functional.leaky_relu(x, a), 0.01),
    "relu": Activation(lambda x, _a, _b: functional.relu(x)),
    "scaledtanh": Activation(lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "sigmoid": Activation(lambda x, _a, _b: torch.sigmoid(x)),
    "softplus": Activation(lambda x, _a, _b: functional.softplus(x)),
    "softsign": Activation(lambda x, _a, _b: functional.softsign(x)),
    "tanh": Activation(lambda x, _a, _b: torch.tanh(x)),
    "thresholdedrelu": Activation(lambda x, a, _: functional.threshold(x, a, 0.0), 1.0),
}
"""By lower-case name, with ONNX's default numbers."""

_Step = Callable[
    [torch.Tensor, States, tuple[torch.Tensor, torch.Tensor], States | None, Cell], States
]


def lstm_step(
    gates: torch.Tensor,
    state: States,
    matrices: tuple[torch.Tensor, torch.Tensor],
    peepholes: States | None,
    cell: Cell,
) -> States:
    """From (hidden, cell) to the next; gates are (input, output, forget, cell)."""
    hidden, memory = state
    gate, squash, show = cell.activations
    i, o, f, c = (gates + functional.linear(hidden, *matrices)).chunk(4, -1)
    if peepholes is not None:
        i, f = i + peepholes[0] * memory, f + peepholes[2] * memory
    i = gate(cell.clipped(i))
    f = 1 - i if cell.input_forget else gate(cell.clipped(f))
    memory = f * memory + i * squash(cell.clipped(c))
    if peepholes is not None:
        o = o + peepholes[1] * memory
    return gate(cell.clipped(o)) * show(cell.clipped(memory)), memory


def gru_step(
    gates: torch.Tensor,
    state: States,
    matrices: tuple[torch.Tensor, torch.Tensor],
    peepholes: States | None,
    cell: Cell,
) -> States:
    """From the hidden state to the next; gates are (update, reset, new)."""
    (hidden,) = state
    matrix, shift = matrices
    gate, squash = cell.activations
    width = hidden.shape[-1]
    early = functional.linear(hidden, matrix[: 2 * width], shift[: 2 * width])
    z, r = (gates[..., : 2 * width] + early).chunk(2, -1)
    z, r = gate(cell.clipped(z)), gate(cell.clipped(r))
    if cell.reset_after:
        new = r * functional.linear(hidden, matrix[2 * width :], shift[2 * width :])
    else:
        new = functional.linear(r * hidden, matrix[2 * width :], shift[2 * width :])
    new = squash(cell.clipped(gates[..., 2 * width :] + new))
    return ((1 - z) * new + z * hidden,)


def rnn_step(
    gates: torch.Tensor,
    state: States,
    matrices: tuple[torch.Tensor, torch.Tensor],
    peepholes: States | None,
    cell: Cell,
) -> States:
    return (cell.activations[0](cell.clipped(gates + functional.linear(state[0], *matrices))),)


STEPS: Mapping[str, _Step] = {"GRU": gru_step, "LSTM": lstm_step, "RNN": rnn_step}
