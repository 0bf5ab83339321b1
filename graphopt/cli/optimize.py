"""`graphopt optimize`: the main job."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graphopt.cli.options import (
    FILE,
    MOST_THREADS,
    TEXT,
    check_external,
    check_json,
    check_target,
    check_unread,
    data_option,
    json_option,
    metric_option,
    preprocess_option,
    read_budget,
    read_graph,
    read_latency,
    seed_option,
    write_json,
)
from graphopt.errors import DataError, RecipeError, TargetError

if TYPE_CHECKING:
    from graphopt.ir import Graph
    from graphopt.manager import PassManager

__all__ = ["optimize"]


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Default: MODEL with .opt.onnx at its end.")
@click.option(
    "--recipe",
    type=TEXT,
    help="A recipe by name, or a YAML file. Default: int8 with --data, else lossless.",
)
@click.option(
    "--passes", help='Passes instead: "a,b{option=value};c" (; ends a stage; c may be a recipe).'
)
@data_option
@click.option(
    "--eval-data",
    type=TEXT,
    help="Inputs that measure. Default: the test part of a named data set, else half of --data.",
)
@preprocess_option
@metric_option
@click.option(
    "--max-drop",
    type=float,
    callback=read_budget,
    help="Largest loss of the metric, 0.01: one point. Default: any, it is only measured.",
)
@click.option("--target-latency", type=TEXT, help="As 0.5x (of the original's) or 3ms.")
@click.option("--report", type=FILE, help="Directory for report.json and report.html.")
@json_option
@click.option("--workdir", type=FILE, help="Keep finished stages here; a killed run resumes.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="For training."
)
@seed_option
@click.option(
    "--threads",
    type=click.IntRange(0, MOST_THREADS),
    help="Of ONNX Runtime (default: 1) and of training (default: all cores); 0: all cores.",
)
@click.option("--no-bench", is_flag=True, help="Do not measure latency.")
def optimize(**options: object) -> int:
    """Make MODEL smaller and faster; the result appears only if it is whole and checked.

    Without --data the rewrites are lossless. With --data weights and activations become 8-bit
    integers where that is faster, held to --max-drop on inputs they have not seen; labels are not
    needed.
    """
    job = Job(**options)  # type: ignore[arg-type]
    if not _is_follower():
        return _run(job)
    quiet = replace(job, report=None, json_file=None, target_latency=None, no_bench=True)
    return _run(quiet, reports=False)


def _is_follower() -> bool:
    """Whether torchrun has started this process beside a first one: that one alone reports."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


@dataclass(frozen=True)
class Job:
    """The options of `optimize` as they were given."""

    model: Path
    output: Path | None
    recipe: str | None
    passes: str | None
    data: str | None
    eval_data: str | None
    preprocess: str | None
    metric: str | None
    max_drop: float | None
    target_latency: str | None
    report: Path | None
    json_file: Path | None
    workdir: Path | None
    device: str
    seed: int
    threads: int | None
    no_bench: bool

    def target(self) -> Path:
        """Where the result goes. Raises TargetError for a place that cannot be meant."""
        if self.model.is_dir():
            raise TargetError(f"{self.model}: is a directory; name a model")
        target = self.output or self.model.with_name(f"{self.model.stem}.opt.onnx")
        check_target(f"-o {target}", target)
        if target.resolve() == self.model.resolve() or (
            target.exists() and self.model.exists() and target.samefile(self.model)
        ):
            raise TargetError(f"-o {target}: is the input file, which is never changed")
        check_unread(f"-o {target}", target, *self.read())
        return target

    def read(self) -> tuple[Path | str | None, ...]:
        """What may name a file that is read."""
        return self.model, self.recipe, self.data, self.eval_data, self.metric


def _run(job: Job, *, reports: bool = True) -> int:
    """Check the whole request before the model is read, then do it."""
    from graphopt.metrics import named
    from graphopt.report import check_folder

    target = job.target()
    manager = _manager(job)
    manager.check(has_data=job.data is not None)
    if job.metric is not None:
        named(job.metric)
    check_json(job.json_file, *job.read(), beside=target)
    if job.report is not None:
        check_folder(job.report)
    if job.preprocess is not None and not (job.data or job.eval_data):
        raise DataError("--preprocess: there are no images to prepare; give --data")
    if job.device == "cuda":
        from graphopt.train import find_device

        find_device(job.device)
    latency, relative = read_latency(job.target_latency) if job.target_latency else (None, True)
    if latency is not None and job.no_bench:
        raise RecipeError("--target-latency and --no-bench: give one of them")

    from graphopt import data as datasets
    from graphopt.cli.show import Progress, show_report
    from graphopt.report import write_report

    graph = read_graph(job.model)
    _check_beside(target, graph)
    check_external(job.json_file, graph)
    measured = job.eval_data or (job.data and datasets.held_out(job.data))
    inputs, held_out = (
        spec
        and datasets.open(
            spec, datasets.input_specs(graph), preprocess=job.preprocess, seed=job.seed
        )
        for spec in (job.data, measured)
    )
    with Progress() as progress:
        result = manager.run(
            graph,
            data=inputs or None,
            eval_data=held_out or None,
            watcher=progress if reports else None,
            metric=job.metric,
            max_drop=job.max_drop,
            target_latency=latency,
            relative=relative,
            workdir=job.workdir,
            failures=target.with_name(f"{target.stem}.failures"),
            seed=job.seed,
            threads=job.threads,
            device=job.device,
            measure=not job.no_bench,
        )
    if not reports:
        return 0
    result.graph.save(target)
    report = result.report.with_files(job.model, target)
    if job.json_file is not None:
        write_json(job.json_file, report.to_json())
    if job.report is not None:
        write_report(report, job.report)
    show_report(report)
    return 1 if report.unmet else 0


def _check_beside(target: Path, graph: Graph) -> None:
    """Raise TargetError where the result, or its weights, would replace those of the input.

    What is smaller in the end needs no second file: then saving it looks again.
    """
    from graphopt.files import is_one_of
    from graphopt.ir.writing import SINGLE_FILE_LIMIT, data_path

    external = () if graph.source is None else graph.source.external
    large = graph.size_bytes() > SINGLE_FILE_LIMIT
    for path in (target, data_path(target)) if large else (target,):
        if is_one_of(path, external):
            raise TargetError(
                f"-o {target}: {path.name} holds weights of the input, which is never changed; "
                "give another name"
            )


def _manager(job: Job) -> PassManager:
    """Resolve every pass and option; without any, the recipe that is safe without being asked."""
    from graphopt.manager import PassManager
    from graphopt.notation import parse
    from graphopt.recipe import Recipe, load_recipe, read_steps

    if job.recipe is not None and job.passes is not None:
        raise RecipeError("--recipe and --passes: give one of them")
    if job.passes is None:
        return PassManager(load_recipe(job.recipe or ("int8" if job.data else "lossless")))
    return PassManager(Recipe("--passes", "", read_steps(parse(job.passes))))
