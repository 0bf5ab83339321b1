"""Measure static quantization by graphopt and by other tools, on the same calibration images.

    python -m models.quant_peers MODEL.onnx --data SPEC --eval-data SPEC --preprocess P \
        --samples 100 --to rows.jsonl [--tools graphopt-mse,ort-minmax] [--threads 1 2] \
        [--peer-python nncf=PYTHON --peer-python neural-compressor=PYTHON]
    python -m models.quant_peers --print rows.jsonl
    python -m models.quant_peers MODEL.onnx --data SPEC --preprocess P --memory 100 10000

Each tool quantizes in one cold process, whose CPU seconds and peak resident memory are the
kernel's account of it. What prepares a model is apart: the lossless recipe for graphopt,
onnxruntime's pre-processing for the others. The result is compared with the original in ONNX
Runtime, as its users run it: top-1, agreement, signal over error of the outputs, and the latency
in pairs, for each number of threads. The first row is the original itself. Layers that are not
faster on integers stay in floats in `graphopt-paying`, as they do by default, and in no other row.
Every row is a line of JSON; what the file already holds is not measured again. With `--memory`
only the peak memory of calibrating on so many images is measured, all of them looked at, and
related to that of the first number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import graphopt as go
from graphopt import data as datasets
from graphopt.data import Dataset, input_specs
from graphopt.errors import RuntimeUnavailable
from graphopt.ir import Graph
from graphopt.runtime import BenchPlan, Session, bench
from models.quant_programs import OPENED, PROGRAMS, STORED

__all__ = ["Row", "main", "table"]

FLOAT = "float"
"""Names the row of the original."""


@dataclass(frozen=True)
class Row:
    """One tool on one model, or the model itself.

    Accuracies are fractions; `ratios` are those of the latency, by number of threads; CPU seconds
    and MB are those of the process.
    """

    model: str
    tool: str
    samples: int
    top1: float | None
    agreement: float
    decibels: float
    ratios: Mapping[str, float]
    size: float
    cpu_seconds: float
    peak_mb: float
    failed: str = ""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.print:
        print(table([Row(**json.loads(line)) for line in options.print.read_text().splitlines()]))
        return
    if options.memory:
        _memory(options)
        return
    known = options.to.read_text().splitlines() if options.to.exists() else []
    done = {(row["model"], row["tool"], row["samples"]) for row in map(json.loads, known)}
    graph = go.load(options.model)
    rows, evaluated = _data(graph, options)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.savez(place / "rows.npz", allow_pickle=False, **next(rows.batches(options.samples)))
        prepared = _prepared(graph, options.model, place)
        for tool in (FLOAT, *options.tools.split(",")):
            if (options.model.stem, tool, options.samples) in done:
                continue
            row = _measured(graph, tool, prepared, evaluated, options, place)
            with options.to.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            print(table([row]).splitlines()[-1], flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--eval-data", help="default: the rows of --data that do not calibrate")
    parser.add_argument("--preprocess")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--tools", default=",".join(PROGRAMS))
    parser.add_argument("--peer-python", action="append", default=[], metavar="TOOL=PYTHON",
                        help="runs a tool from its own environment")  # fmt: skip
    parser.add_argument("--to", type=Path, default=Path("quant_peers.jsonl"))
    parser.add_argument("--print", type=Path)
    parser.add_argument("--memory", type=int, nargs="+", metavar="IMAGES")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    return parser


def _data(graph: Graph, options: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """The rows that calibrate, drawn once for all tools, and those that measure."""
    specs = input_specs(graph)
    whole = datasets.open(options.data, specs, preprocess=options.preprocess, seed=0)
    order = np.random.default_rng(0).permutation(len(whole))
    calibrating = whole.select(order[: options.samples])
    if options.eval_data is None:
        return calibrating, whole.select(order[options.samples :])
    measuring = datasets.open(options.eval_data, specs, preprocess=options.preprocess, seed=0)
    return calibrating, measuring


def _prepared(graph: Graph, model: Path, place: Path) -> Callable[[str], Path]:
    """From a tool to the model as that side's own preparation leaves it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ours, theirs = place / "ours.onnx", place / "theirs.onnx"
    go.PassManager(["lossless"]).run(graph, measure=False).graph.save(ours)
    quant_pre_process(str(model), str(theirs), skip_symbolic_shape=True)
    return lambda tool: ours if tool.startswith("graphopt") else theirs


def _measured(
    graph: Graph,
    tool: str,
    prepared: Callable[[str], Path],
    evaluated: Dataset,
    options: argparse.Namespace,
    place: Path,
) -> Row:
    if tool == FLOAT:
        return _float_row(graph, evaluated, options)
    out = place / f"{tool}.onnx"
    pythons = dict(entry.split("=", 1) for entry in options.peer_python)
    python = pythons.get(tool, sys.executable)
    cpu, peak, failed = _run(
        [python, "-c", STORED + PROGRAMS[tool], prepared(tool), out, place / "rows.npz"]
    )
    name = options.model.stem
    if not failed:
        try:
            Session.open(out).close()
        except RuntimeUnavailable as error:
            failed = str(error)[:200]
    if failed:
        nothing = float("nan")
        return Row(name, tool, options.samples, None, nothing, nothing, {}, nothing, cpu, peak,
                   failed)  # fmt: skip
    top1, agreement, decibels = _compared(graph, out, evaluated, options.threads[0])
    ratios = _ratios(graph, out, next(evaluated.batches(1)), options.threads)
    size = len(go.load(out).to_bytes()) / len(graph.to_bytes())
    return Row(name, tool, options.samples, top1, agreement, decibels, ratios, size, cpu, peak)


def _ratios(
    graph: Graph, out: Path, feeds: Mapping[str, np.ndarray], threads: Sequence[int]
) -> dict[str, float]:
    """Latency relative to the original's, by number of threads."""
    found = {}
    for number in threads:
        timing = bench(graph, out, feeds=feeds, plan=BenchPlan(threads=number))
        assert timing.ratio is not None, "two models were timed"
        found[str(number)] = timing.ratio
    return found


def _float_row(graph: Graph, evaluated: Dataset, options: argparse.Namespace) -> Row:
    """The original beside itself, without a process of its own."""
    top1, agreement, decibels = _compared(graph, options.model, evaluated, options.threads[0])
    name, nothing = options.model.stem, float("nan")
    return Row(name, FLOAT, options.samples, top1, agreement, decibels, {}, 1.0, nothing, nothing)


def _memory(options: argparse.Namespace) -> None:
    """Print what each tool takes at its peak, by the number of images."""
    print("| network | tool | images | MB | ratio | CPU s |\n|---|---|---|---|---|---|")
    graph = go.load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(graph, options.model, Path(folder))
        for tool in options.tools.split(","):
            first = None
            for count in options.memory:
                command = [sys.executable, "-c", OPENED + PROGRAMS[tool],
                           prepared(tool), Path(folder) / "out.onnx",
                           options.data, options.preprocess or "", count]  # fmt: skip
                cpu, peak, failed = _run(command)
                first = first or peak
                said = f"failed: {failed}" if failed else f"{peak:.0f} | {peak / first:.2f}"
                print(f"| {options.model.stem} | {tool} | {count:,} | {said} | {cpu:.1f} |",
                      flush=True)  # fmt: skip


def _run(command: Sequence[object]) -> tuple[float, float, str]:
    """CPU seconds and peak MB of a process, and the last line it said if it failed."""
    child = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stderr is not None, "its messages are read"
    with child.stderr as stream:
        said = stream.read().strip().splitlines()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    failed = (said or ["failed"])[-1][:200] if child.returncode else ""
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, failed


def _compared(
    graph: Graph, path: Path, rows: Dataset, threads: int
) -> tuple[float | None, float, float]:
    """Top-1, agreement with the original, and decibels of signal over error of first outputs."""
    right = agreed = 0
    signal = error = 0.0
    labels = rows.labels
    with Session.open(graph, threads=threads) as a, Session.open(path, threads=threads) as b:
        for place, feeds in zip(rows.rows(50), rows.batches(50), strict=True):
            want, got = (session.run(feeds)[0].astype(np.float64) for session in (a, b))
            signal += float((want**2).sum())
            error += float(((want - got) ** 2).sum())
            classes = [values.reshape(len(values), -1).argmax(1) for values in (want, got)]
            agreed += int((classes[0] == classes[1]).sum())
            if labels is not None:
                right += int((classes[1] == labels[place]).sum())
    count = len(rows)
    top1 = None if labels is None else right / count
    return top1, agreed / count, 10 * float(np.log10(signal / max(error, 1e-30)))


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    lines = [
        "| network | tool | images | top-1 | agreement | SNR dB | size | latency | CPU s | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def _line(row: Row) -> str:
    if row.failed:
        return f"| {row.model} | {row.tool} | {row.samples} | failed: {row.failed} |"
    if row.tool == FLOAT:
        top1 = "-" if row.top1 is None else f"{row.top1:.2%}"
        return f"| {row.model} | {row.tool} | | {top1} | | | | | | |"
    top1 = "-" if row.top1 is None else f"{row.top1:.2%}"
    ratios = " / ".join(f"{ratio:.2f}" for ratio in row.ratios.values())
    return (
        f"| {row.model} | {row.tool} | {row.samples} | {top1} | {row.agreement:.2%} "
        f"| {row.decibels:.1f} | {row.size:.3f} | {ratios} | {row.cpu_seconds:.1f} "
        f"| {row.peak_mb:.0f} |"
    )


if __name__ == "__main__":
    main()
