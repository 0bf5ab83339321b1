"""Distils a tiny network in as many processes as torchrun starts; the first one saves it.

torchrun --nproc-per-node 2 parallel.py OUT.onnx ROWS_PER_PROCESS
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from graphopt.train import History, distill
from tests.train.networks import ALONE, QUICK, disturbed, images, small

__all__ = ["train"]


def train(path: str, batch: int) -> History:
    """Two epochs of a network whose weights are off, taught by what it was."""
    graph = disturbed(small())
    plan = replace(QUICK, epochs=2, batch=batch, augment=("flip", "crop", "mixup"))
    history = distill(graph, small(), images(96), plan, resources=ALONE)
    if os.environ.get("RANK", "0") == "0":
        graph.save(path)
    return history


if __name__ == "__main__":
    done = train(sys.argv[1], int(sys.argv[2]))
    if os.environ["RANK"] == "0":
        print(done.processes, done.batch, done.steps, done.curve[-1].held_out)
