"""What pruning, sharing and Huffman codes leave of LeNets; see `--help`.

Each row is a run of passes on a network trained on MNIST here; errors are of its 10,000 test images
in ONNX Runtime. Sizes are of whole files: graph, biases, codebooks and checksums included.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import zstandard

from graphopt import data
from graphopt.data import Dataset, input_specs
from graphopt.ir import Graph
from graphopt.notation import parse
from graphopt.packed import pack
from graphopt.passbase import Context
from graphopt.recipe import read_steps
from graphopt.runtime import Session
from graphopt.sparse import find_weights

__all__ = ["ROWS", "Sizes", "main", "measured", "sizes_of"]

_BY_ONE = "augment=[crop], shift=1, batch=256"
_BY_THREE = "augment=[crop], batch=256, precision=bf16, layout=channels-last"

ROWS: Mapping[str, Mapping[str, str]] = {
    "lenet-300-100": {
        "deep-compression": f"prune-weights{{sparsity=0.93, course=surgery, until=0.5, epochs=24, "
        f"rate=0.08, {_BY_ONE}}}; share-weights{{bits=6}}; "
        f"finetune{{epochs=2, rate=0.003, {_BY_ONE}}}",
        "dynamic-network-surgery": f"prune-weights{{sparsity=0.981, course=surgery, epochs=200, "
        f"rate=0.08, {_BY_ONE}}}",
        "han-2015": f"prune-weights{{sparsity=0.9167, allocation=deviation, course=iterative, "
        f"steps=4, epochs=30, rate=0.1, {_BY_ONE}}}",
    },
    "lenet-5": {
        "deep-compression": f"prune-weights{{sparsity=0.915, course=surgery, until=0.4, epochs=24, "
        f"rate=0.05, {_BY_THREE}}}; share-weights{{bits=5, conv_bits=6}}",
        "dynamic-network-surgery": f"prune-weights{{sparsity=0.9905, course=surgery, epochs=70, "
        f"rate=0.08, {_BY_THREE}}}",
        "han-2015": f"prune-weights{{sparsity=0.9167, allocation=deviation, course=iterative, "
        f"steps=4, epochs=15, rate=0.05, {_BY_THREE}}}",
    },
}
"""For each network the passes of each method, with the levels that suit it."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model as ONNX, coded with a fixed number of bits, packed, and compressed.

    `fixed` has codes and gaps of 8 bits without Huffman codes, and everything else as packed.
    """

    onnx: int
    left: int
    weights: int
    fixed: int
    packed: int
    zipped: int
    zstd: int


def sizes_of(graph: Graph) -> Sizes:
    """Measure one network."""
    raw = graph.to_bytes()
    with tempfile.TemporaryDirectory() as folder:
        packing = pack(raw, Path(folder) / "model.gopt")
    weights = find_weights(graph)[0].values()
    left = sum(int(np.count_nonzero(weight)) for weight in weights)
    rest = packing.size - packing.parts["gaps"] - packing.parts["codes"]
    return Sizes(
        onnx=len(raw),
        left=left,
        weights=sum(weight.size for weight in weights),
        fixed=rest + sum(map(_fixed_bytes, weights)),
        packed=packing.size,
        zipped=len(zlib.compress(raw, 9)),
        zstd=len(zstandard.ZstdCompressor(19).compress(raw)),
    )


def _fixed_bytes(weight: np.ndarray) -> int:
    """Codes of as many bits as the values need, gaps of 8 bits with fillers."""
    places = np.flatnonzero(weight)
    gaps = np.diff(places, prepend=-1) - 1
    bits = math.ceil(math.log2(max(len(np.unique(weight[weight != 0])), 2)))
    return math.ceil(len(places) * bits / 8) + len(places) + int((gaps // 255).sum())


def measured(graph: Graph, test: Dataset) -> float:
    """The error in percent."""
    with Session.open(graph) as session:
        found = [session.run(batch)[0].argmax(1) for batch in test.batches(500)]
    return float(100 * np.mean(np.concatenate(found) != test.labels))


@click.command()
@click.argument("network", type=click.Choice(list(ROWS)))
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--method", multiple=True, help="Only these rows.")
@click.option("--passes", help="Instead of the rows: other passes, as `optimize` takes them.")
@click.option(
    "--save", type=click.Path(path_type=Path, file_okay=False), help="Folder for results."
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--seed", default=0, show_default=True)
def main(
    network: str,
    model: Path,
    method: tuple[str, ...],
    passes: str | None,
    save: Path | None,
    threads: int,
    seed: int,
) -> None:
    """Compress MODEL, a NETWORK that `models.train` trained on mnist, by every method."""
    original = Graph.load(model)
    specs = input_specs(original)
    train, test = (data.open(f"mnist:{part}", specs) for part in ("train", "test"))
    titles = ("error %", "weights", "fewer", "ONNX", "fixed", "packed", "smaller", "zip", "zstd")
    widths = (7, 8, 6, 9, 7, 7, 7, 7, 8)
    heads = " ".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))
    click.echo(f"{'method':24} {'step':14} {heads}")
    _print("", "trained", original, test)
    rows = {"passes": passes} if passes else ROWS[network]
    for name, text in rows.items():
        if method and name not in method:
            continue
        graph = original.clone()
        for step in (step for stage in read_steps(parse(text)) for step in stage.passes):
            context = Context(original=original, calibration=train, threads=threads, seed=seed)
            step.run(graph, context)
            _print(name, step.name, graph, test)
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
            graph.save(save / f"{network}.{name}.onnx")


def _print(name: str, step: str, graph: Graph, test: Dataset) -> None:
    found = sizes_of(graph)
    shared = found.fixed if found.packed < found.onnx / 5 else 0
    click.echo(
        f"{name:24} {step:14} {measured(graph, test):7.2f} {found.left:8,} "
        f"{found.weights / found.left:5.1f}x {found.onnx:9,} {shared:7,} {found.packed:7,} "
        f"{found.onnx / found.packed:6.1f}x {found.zipped:7,} {found.zstd:8,}"
    )


if __name__ == "__main__":
    main()
