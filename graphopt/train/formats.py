"""Precision and memory layout: what is asked for, or what is fastest on a real step."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import nn

from graphopt.train.batches import Batch, Outputs, laid_out
from graphopt.train.objectives import Objective
from graphopt.train.plan import Plan

__all__ = ["Format", "arrange", "as_outputs", "candidates", "run_once", "widened"]


@dataclass(frozen=True)
class Format:
    """How numbers are computed with, and how images lie in memory."""

    bf16: bool
    channels_last: bool

    def __str__(self) -> str:
        precision = "bf16" if self.bf16 else "float32"
        return f"{precision}, {'channels-last' if self.channels_last else 'contiguous'}"


def as_outputs(given: object) -> Outputs:
    """What a lowered module returns, one tensor or several, as a tuple."""
    if isinstance(given, torch.Tensor):
        return (given,)
    assert isinstance(given, tuple), "a lowered module returns tensors"
    return given


def widened(outputs: Outputs) -> Outputs:
    """What was computed narrowly, in the precision that losses are computed in."""
    return tuple(o.float() if o.dtype == torch.bfloat16 else o for o in outputs)


def candidates(plan: Plan, module: nn.Module, device: torch.device) -> list[Format]:
    """The formats that the plan allows and that can make a difference; the plainest first."""
    parameters = list(module.parameters())
    images = any(parameter.dim() == 4 for parameter in parameters)
    single = all(parameter.dtype == torch.float32 for parameter in parameters)
    layouts = [False, True] if images else [False]
    if plan.layout != "auto":
        layouts = [plan.layout == "channels-last"]
    precisions = [False, True] if single and _has_bf16(device) else [False]
    if plan.precision != "auto":
        precisions = [plan.precision == "bf16"]
    found = [Format(bf16, last) for bf16 in precisions for last in layouts]
    # A GPU has units of its own for narrow products, with images laid out so.
    return found[-1:] if device.type == "cuda" else found


def _has_bf16(device: torch.device) -> bool:
    """Whether the device has units for bf16; on a CPU timing tells."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def arrange(module: nn.Module, layout: Format) -> None:
    """Lay weights out as the format says; values and names stay."""
    wanted = torch.channels_last if layout.channels_last else torch.contiguous_format
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=wanted)


def run_once(module: nn.Module, objective: Objective, batch: Batch, layout: Format) -> float:
    """Compute loss and gradients; how many seconds it took."""
    inputs = laid_out(batch.inputs) if layout.channels_last else batch.inputs
    start = time.perf_counter()
    with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=layout.bf16):
        outputs = as_outputs(module(*inputs))
    loss = objective(widened(outputs), replace(batch, inputs=inputs))
    loss.backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start
