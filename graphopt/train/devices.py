"""Where a training runs: the device and its processes."""

from __future__ import annotations

import atexit
import logging
import os

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import nn

from graphopt.errors import RecipeError

# It says on stderr which precision and how many processes it was asked for.
for _part in ("distributed", "rank_zero"):
    logging.getLogger(f"lightning_fabric.utilities.{_part}").setLevel(logging.WARNING)

__all__ = ["check_alike", "equalise", "find_device", "launch"]


def find_device(wanted: str) -> str:
    """The device `auto`, `cpu` or `cuda` stands for. Raises RecipeError if CUDA is absent."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise RecipeError(
            "device cuda: torch finds no CUDA device here; use --device cpu, or install a CUDA "
            "build of torch on a machine that has one"
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def launch(device: str, precision: str) -> Fabric:
    """Join the processes that torchrun has started, or run in this one alone."""
    if not torch.distributed.is_torchelastic_launched():
        return _launched(Fabric(accelerator=device, devices=1, precision=precision))
    # Gloo's threads abort a process that ends while they still run.
    atexit.register(_leave)
    here, all_of_them = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return _launched(
        Fabric(
            accelerator=device,
            devices=here,
            num_nodes=all_of_them // here,
            strategy="ddp",
            precision=precision,
        )
    )


def check_alike(fabric: Fabric, module: nn.Module) -> None:
    """Raise RecipeError unless all processes have a network of the same sizes."""
    if fabric.world_size == 1:
        return
    sizes = [(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()]
    found: list[object] = [None] * fabric.world_size
    torch.distributed.all_gather_object(found, sizes)
    if any(other != sizes for other in found):
        raise RecipeError(
            "train: the processes have networks of different sizes, for each went by its own "
            "clock; give `align` a number, and pays=false, in the passes before"
        )


def equalise(fabric: Fabric, module: nn.Module) -> None:
    """Give the network of every process what the first one's has: statistics of batches differ."""
    if fabric.world_size > 1:
        for tensor in module.state_dict().values():
            whole = tensor.contiguous()
            torch.distributed.broadcast(whole, 0)
            tensor.copy_(whole)


def _launched(fabric: Fabric) -> Fabric:
    fabric.launch()
    return fabric


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
