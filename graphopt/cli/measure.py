"""`graphopt bench` and `graphopt compare`: how fast, and how alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np

from graphopt.cli.options import (
    FILE,
    check_external,
    check_json,
    data_option,
    json_option,
    metric_option,
    preprocess_option,
    read_graph,
    seed_option,
    threads_option,
    write_json,
)
from graphopt.cli.show import print_table
from graphopt.data import Dataset, input_specs, is_function_name
from graphopt.data import open as open_data
from graphopt.data.inputs import fixed_batch
from graphopt.errors import DataError, ModelError
from graphopt.ir import Graph
from graphopt.manager import size_of_source
from graphopt.metrics import Metric, choose
from graphopt.passbase import Note
from graphopt.report import change, score, significant
from graphopt.report import macs as macs_text
from graphopt.report import threads as threads_text
from graphopt.runtime import BenchPlan, BenchResult, Comparison, Latency, Session, runnable_feeds
from graphopt.runtime import bench as run_bench
from graphopt.runtime import compare as compare_outputs

__all__ = ["bench", "compare"]

Pair = tuple[Path | Graph, Path | Graph]


@click.command()
@click.argument("model", type=FILE)
@click.option("--against", type=FILE, multiple=True, help="Another model, timed in turns with it.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="Default: 1, or the only one that MODEL takes."
)
@threads_option
@seed_option
@json_option
def bench(
    model: Path,
    against: Sequence[Path],
    batch: int | None,
    threads: int,
    seed: int,
    json_file: Path | None,
) -> int:
    """Time MODEL in ONNX Runtime; with --against, in interleaved pairs, so that ratios hold."""
    check_json(json_file, model, *against)
    graph = read_graph(model)
    loaded = {other: read_graph(other) for other in against}
    check_external(json_file, graph, *loaded.values())
    others = {other: _openable(other, found) for other, found in loaded.items()}
    feeds = runnable_feeds(graph, seed, batch=batch or 1).arrays
    size = _batch_size(model, graph, batch)
    plan = BenchPlan(threads=threads, seed=seed, memory=True)
    results = {
        other: run_bench(_openable(model, graph), other and others[other], feeds=feeds, plan=plan)
        for other in (against or (None,))
    }
    first = next(iter(results.values()))
    rows = [_row(model, first.a, None)]
    rows += [
        _row(other, result.b, result) for other, result in results.items() if other and result.b
    ]
    columns = ["model", "median ms", "p10", "p90", "peak MB", "ratio", "95 % interval", "verdict"]
    print_table(f"batch {size}, {threads_text(threads)}", columns, rows)
    if json_file is not None:
        write_json(json_file, _bench_document(model, results, size, threads))
    return 0


def _batch_size(model: Path, graph: Graph, wanted: int | None) -> int:
    """The size of the batches that are run; raises DataError for one that the model refuses."""
    fixed = fixed_batch(input_specs(graph))
    if fixed is not None and wanted not in (None, fixed):
        raise DataError(
            f"--batch {wanted}: {model.name} takes batches of {fixed} only; leave --batch out, or "
            "export the model with an open batch"
        )
    return fixed or wanted or 1


def _openable(model: Path, graph: Graph) -> Path | Graph:
    """A file as it is, or what a factory gave: called again, it could give other weights."""
    return graph if is_function_name(str(model)) else model


def _row(model: Path, latency: Latency, result: BenchResult | None) -> list[str]:
    memory = "" if latency.peak_memory_mb is None else f"{latency.peak_memory_mb:.0f}"
    times = [significant(value) for value in (latency.median_ms, latency.p10_ms, latency.p90_ms)]
    if result is None or result.ratio is None or result.interval is None:
        return [model.name, *times, memory, "", "", ""]
    low, high = result.interval
    return [model.name, *times, memory, f"{result.ratio:.3f}", f"{low:.3f} to {high:.3f}",
            result.verdict]  # fmt: skip


def _bench_document(
    model: Path, results: Mapping[Path | None, BenchResult], batch: int, threads: int
) -> dict[str, Note]:
    first = next(iter(results.values()))
    against: list[Note] = [
        {
            "model": str(other),
            **_latency(result.b),
            "ratio": result.ratio,
            "interval": list(result.interval or ()),
            "pairs": result.pairs,
            "verdict": result.verdict,
        }
        for other, result in results.items()
        if other is not None and result.b is not None
    ]
    head: dict[str, Note] = {"model": str(model), "batch": batch, "threads": threads}
    return {**head, **_latency(first.a), "against": against}


def _latency(latency: Latency) -> dict[str, Note]:
    times: dict[str, Note] = {
        "median": latency.median_ms, "p10": latency.p10_ms, "p90": latency.p90_ms
    }  # fmt: skip
    return {"latency_ms": times, "peak_memory_mb": latency.peak_memory_mb}


@click.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@data_option
@preprocess_option
@metric_option
@seed_option
@json_option
def compare(
    a: Path,
    b: Path,
    data: str | None,
    preprocess: str | None,
    metric: str | None,
    seed: int,
    json_file: Path | None,
) -> int:
    """Compare A, the reference, with B: structure, outputs, and with --data the metric."""
    check_json(json_file, a, b, data, metric)
    one, other = read_graph(a), read_graph(b)
    check_external(json_file, one, other)
    if one.outputs != other.outputs or one.inputs != other.inputs:
        raise ModelError(
            f"compare: {a.name} has inputs {list(one.inputs)} and outputs {list(one.outputs)}, "
            f"{b.name} {list(other.inputs)} and {list(other.outputs)}; they must be the same"
        )
    dataset = None
    if data is not None:
        dataset = open_data(data, input_specs(one), preprocess=preprocess, seed=seed)
    elif metric is not None:
        raise DataError("--metric: there are no data to take it on; give --data")
    feeds = runnable_feeds(one, seed).arrays if dataset is None else next(iter(dataset.batches(16)))
    models = _openable(a, one), _openable(b, other)
    found = _outputs(models, feeds)
    _show_structure(one, other)
    _show_outputs(found)
    measured = None if dataset is None else _metric(models, dataset, metric)
    if measured is not None:
        print_table("", ["metric", a.name, b.name, "drop"],
                    [[measured[0], *map(score, measured[1:])]])  # fmt: skip
    if json_file is not None:
        write_json(json_file, _compare_document(a, b, one, other, found, measured))
    return 0


def _outputs(models: Pair, feeds: Mapping[str, np.ndarray]) -> Comparison:
    with (
        Session.open(models[0], optimize="none") as one,
        Session.open(models[1], optimize="none") as other,
    ):
        names = [port.name for port in one.outputs]
        return compare_outputs(one.run(feeds), other.run(feeds), names)


def _show_structure(one: Graph, other: Graph) -> None:
    sizes = before, after = size_of_source(one), size_of_source(other)
    rows = [
        ["nodes", *(f"{size.nodes:,}" for size in sizes), change(before.nodes, after.nodes)],
        ["parameters", *(f"{size.parameters:,}" for size in sizes),
         change(before.parameters, after.parameters)],
        ["MACs", *map(macs_text, sizes), change(before.macs, after.macs)],
        ["file (bytes)", *(f"{size.bytes:,}" for size in sizes), change(before.bytes, after.bytes)],
    ]  # fmt: skip
    counts = [_operators(graph) for graph in (one, other)]
    for operator in sorted(set(counts[0]) | set(counts[1])):
        old, new = (count.get(operator, 0) for count in counts)
        if old != new:
            rows.append([operator, str(old), str(new), f"{new - old:+d}"])
    print_table("structure", ["", "A", "B", "change"], rows)


def _operators(graph: Graph) -> Mapping[str, int]:
    from graphopt.cost import cost

    return cost(graph).operators


def _show_outputs(found: Comparison) -> None:
    rows = [
        [
            output.name,
            f"{output.max_abs:.3g}",
            f"{output.mean_abs:.3g}",
            f"{output.relative:.3g}",
            f"{output.sqnr_db:.1f}",
            output.problem or (f"{output.mismatched} differ" if output.mismatched else ""),
        ]
        for output in found.outputs
    ]
    columns = ["output", "largest error", "mean error", "of its range", "SQNR dB", "remark"]
    print_table("outputs", columns, rows)


def _metric(models: Pair, dataset: Dataset, name: str | None) -> tuple[str, float, float, float]:
    with Session.open(models[0]) as one, Session.open(models[1]) as other:
        outputs = one.run(next(iter(dataset.batches(2))))
        metric: Metric = choose(name, has_labels=dataset.labels is not None, outputs=outputs)
        before = metric.evaluate(one.run, dataset, one.run)
        after = metric.evaluate(other.run, dataset, one.run)
    return metric.name, before, after, metric.drop(before, after)


def _compare_document(
    a: Path,
    b: Path,
    one: Graph,
    other: Graph,
    found: Comparison,
    measured: tuple[str, float, float, float] | None,
) -> dict[str, Note]:
    outputs: list[Note] = [
        {
            "name": output.name,
            "max_abs": output.max_abs,
            "mean_abs": output.mean_abs,
            "relative": output.relative,
            "sqnr_db": output.sqnr_db,
            "mismatched": output.mismatched,
            "problem": output.problem,
        }
        for output in found.outputs
    ]
    metric: Note = None
    if measured is not None:
        metric = dict(zip(("name", "a", "b", "drop"), measured, strict=True))
    return {
        "a": {"model": str(a), **size_of_source(one).to_json()},
        "b": {"model": str(b), **size_of_source(other).to_json()},
        "outputs": outputs,
        "metric": metric,
    }
