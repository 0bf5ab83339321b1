"""Train a reference network on a task and write it as ONNX: `python -m models.train --help`.

Two runs on the CPU with one seed agree to the last bit on one machine with one number of threads;
another machine may round differently.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnxscript import optimizer as onnxscript_optimizer
from torch import nn

from models.networks import NETWORKS
from models.tasks import TASKS, Examples, Task, top1

__all__ = ["export", "main", "onnx_logits"]

OPSET = 18


def export(network: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    """Write the network as ONNX: batch `N` dynamic, BatchNorm kept, weights named as in torch.

    The exporter's full optimizer would fold BatchNorm away, so only constants are folded here.
    """
    with warnings.catch_warnings():
        # the exporter calls parts of torch that torch itself deprecates
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            network.to("cpu").eval(),
            (torch.zeros(2, *shape),),
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns a program"
    onnxscript_optimizer.fold_constants(program.model)
    onnxscript_optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    _strip_traces(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _strip_traces(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes on its run: equal weights then give equal bytes, anywhere."""
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def onnx_logits(
    path: Path, examples: Examples, *, batch_size: int = 256
) -> npt.NDArray[np.float32]:
    """Run an exported network in ONNX Runtime over all examples."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    starts = range(0, len(examples), batch_size)
    batches = [examples.images[start : start + batch_size] for start in starts]
    return np.concatenate([session.run(["logits"], {"image": batch})[0] for batch in batches])


def _scheduled(task: Task, epochs: int | None, rate: float | None, batch: int | None) -> Task:
    schedule = replace(
        task.schedule,
        epochs=epochs or task.schedule.epochs,
        peak_rate=rate or task.schedule.peak_rate,
        batch_size=batch or task.schedule.batch_size,
    )
    return replace(task, schedule=schedule)


@click.command()
@click.argument("network", type=click.Choice(list(NETWORKS)))
@click.argument("task", type=click.Choice(list(TASKS)))
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the task's own number.")
@click.option("--rate", type=float, help="Peak learning rate instead of the task's own.")
@click.option("--batch", type=click.IntRange(min=2), help="Rows of a step, instead of the task's.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--device", default="cpu", show_default=True)
def main(
    network: str,
    task: str,
    output: Path,
    epochs: int | None,
    rate: float | None,
    batch: int | None,
    seed: int,
    threads: int,
    device: str,
) -> None:
    """Train NETWORK on TASK and write it to OUTPUT as ONNX."""
    reference, chosen = NETWORKS[network], _scheduled(TASKS[task], epochs, rate, batch)
    if reference.shape != chosen.shape:
        raise click.UsageError(
            f"{network} takes images of {reference.shape}, but those of {task} are {chosen.shape}"
        )
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    module = reference.build()
    chosen.train(
        module,
        seed=seed,
        device=device,
        progress=lambda epoch, loss: click.echo(f"epoch {epoch:3d}  loss {loss:.4f}"),
    )
    in_torch = chosen.evaluate(module, device=device)
    export(module, chosen.shape, output)
    test = chosen.examples("test")
    in_onnx = top1(onnx_logits(output, test), test.labels)
    click.echo(f"top-1 on {len(test)} held-out rows: torch {in_torch:.4f}, ONNX {in_onnx:.4f}")


if __name__ == "__main__":
    main()
