"""Print how much of a classifier's accuracy training brings back after a cut, by time spent.

python -m models.recovery 'remove-channels{macs=0.5}' ORIGINAL.onnx --minutes 10 30 --threads 0

The cut is a list of passes, or a pruned file. Which channels are left is known of the first only,
so that files are not refitted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from graphopt import data as datasets
from graphopt.cost import cost
from graphopt.data import Dataset, input_specs
from graphopt.ir import Graph
from graphopt.notation import parse
from graphopt.passbase import Context, Pass
from graphopt.recipe import read_steps
from graphopt.refit import noted_traces
from models.factorize_table import top1
from passes.refit import Refit

__all__ = ["Bench", "main"]


@dataclass(frozen=True)
class Bench:
    """What all rows of the table share."""

    pruned: Graph
    original: Graph
    train: Dataset
    test: Dataset
    device: str
    threads: int
    seed: int

    def context(self) -> Context:
        """What a pass is lent; progress goes to the terminal."""
        return Context(
            original=self.original, calibration=self.train, seed=self.seed, threads=self.threads,
            device=self.device, progress=_progress,
        )  # fmt: skip

    def start(self, refit: int) -> tuple[Graph, float]:
        """The cut network, refitted on so many inputs (0: not); the seconds that took."""
        graph, began = self.pruned.clone(), time.perf_counter()
        if refit:
            Refit(samples=refit).run(graph, self.context())
        return graph, time.perf_counter() - began

    def after(self, passes: str) -> Graph:
        """The original, cut."""
        graph = self.original.clone()
        for step in (step for stage in read_steps(parse(passes)) for step in stage.passes):
            step.run(graph, self.context())
        return graph

    def trained(self, start: Graph, step: Pass) -> tuple[float, dict[str, object]]:
        """Top-1 in percent after training, and what the pass notes."""
        graph, context = start.clone(), self.context()
        step.run(graph, context)
        return top1(graph, self.test), dict(context.notes)


def rows(bench: Bench, base: float, given: argparse.Namespace) -> Iterator[str]:
    """One line for each start, way of training and time."""
    methods = ["distill"] + ["finetune"] * bool(given.labels)
    for refit in [0] + [given.refit] * bool(given.refit and noted_traces(bench.pruned)):
        start, seconds = bench.start(refit)
        found = top1(start, bench.test)
        first = f"refitted ({seconds:.0f} s)" if refit else "cut"
        yield f"{first:20} {'-':10} {0:8} {found:8.2f} {base - found:8.2f}"
        for method in methods:
            extra = given.distill if method == "distill" else given.finetune
            for length in given.lengths:
                bound = f"{'epochs' if given.epochs else 'minutes'}={length}"
                step = f"{method}{{{','.join([bound, *extra])}}}"
                found, notes = bench.trained(start, read_steps(parse(step))[0].passes[0])
                yield (
                    f"{first:20} {method:10} {length:8g} {found:8.2f} {base - found:8.2f} "
                    f"{notes['epochs']:8} {notes['seconds']:8} {notes['format']}, kept step "
                    f"{notes['kept_step']} of {notes['steps']}"
                )


def _progress(what: str, part: float) -> None:
    if sys.stderr.isatty():
        print(f"\r{what:40} {part:4.0%}", end="\r", file=sys.stderr, flush=True)


def _read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cut", help="passes, or PRUNED.onnx")
    parser.add_argument("original")
    parser.add_argument("--data", default="cifar10:train", help="trains; labels only finetune")
    parser.add_argument("--test", default="cifar10:test")
    parser.add_argument("--preprocess", default="imagenet")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, nargs="+")
    length.add_argument("--epochs", type=float, nargs="+")
    parser.add_argument("--refit", type=int, default=1024, help="inputs to refit on; 0: do not")
    parser.add_argument("--labels", action="store_true", help="also fine-tune with labels")
    parser.add_argument("--distill", nargs="*", default=[], help="options, as temperature=2")
    parser.add_argument("--finetune", nargs="*", default=[], help="options, as rate=0.01")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.lengths = given.minutes or given.epochs
    return given


def main() -> None:
    """Read the arguments and print the table as it comes."""
    given = _read()
    original = Graph.load(given.original)
    specs = input_specs(original)
    train, test = (
        datasets.open(spec, preprocess=given.preprocess, seed=given.seed).bind(specs)
        for spec in (given.data, given.test)
    )
    bench = Bench(original, original, train, test, given.device, given.threads, given.seed)
    pruned = Graph.load(given.cut) if given.cut.endswith(".onnx") else bench.after(given.cut)
    bench = replace(bench, pruned=pruned)
    ratio = cost(pruned).macs / cost(original).macs
    base = top1(original, test)
    print(f"{given.cut}: {ratio:.3f} of the MACs; original {base:.2f} %; {len(train)} rows train")
    head = ("start", "training", "epochs" if given.epochs else "minutes", "top-1 %", "drop")
    print("{:20} {:10} {:>8} {:>8} {:>8} {:>8} {:>8}".format(*head, "epochs", "seconds"))
    for line in rows(bench, base, given):
        print(line, flush=True)


if __name__ == "__main__":
    main()
