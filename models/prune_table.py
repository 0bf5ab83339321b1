"""Measure what criteria of importance keep of a classifier: cut, cut and refitted, or both at once.

python -m models.prune_table MODEL.onnx --to table.jsonl --jobs 8
python -m models.prune_table --print table.jsonl

Every result is one line of JSON, added to the file as soon as it is known; what the file already
holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from graphopt import data as datasets
from graphopt.cost import cost
from graphopt.coupling.importance import IMPORTANCES
from graphopt.data import Dataset, input_specs
from graphopt.errors import GraphoptError
from graphopt.ir import Graph
from graphopt.passbase import Context, Pass
from graphopt.runtime import Session
from passes.fold_batch_norm import FoldBatchNorm
from passes.refit import Refit
from passes.remove_and_refit import SURGEON, RemoveAndRefit
from passes.remove_channels import RemoveChannels

__all__ = ["Cell", "Setting", "main", "measured", "table"]

_OF_NORMS = ("batch-norm-scale", "taylor-gate")
"""They score BatchNormalizations, which are folded."""

CRITERIA = (SURGEON, *(name for name in IMPORTANCES if name not in _OF_NORMS))
_KEY = ("model", "criterion", "way", "macs", "seed", "joint", "mirror")
WAYS = ("cut", "refit", "remove-and-refit")
_BATCH = 250
_BESIDE = 2000
"""Inputs, not those that calibrate, on which the divergence is measured."""


@dataclass(frozen=True)
class Setting:
    """A model, where its inputs come from, and how many of them calibrate."""

    model: str
    calibration: str
    test: str
    preprocess: str | None
    inputs: int
    joint: int = 0
    mirror: bool = False


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    criterion: str
    way: str
    macs: float
    seed: int

    def steps(self, setting: Setting) -> Sequence[Pass]:
        samples, joint = setting.inputs, setting.joint
        if self.way == "remove-and-refit":
            return [
                RemoveAndRefit(
                    macs=self.macs,
                    samples=samples,
                    joint=joint,
                    mirror=setting.mirror,
                    importance=self.criterion,
                )
            ]
        cut = RemoveChannels(macs=self.macs, importance=self.criterion, samples=samples, align=1)
        return [cut] if self.way == "cut" else [cut, Refit(samples=samples, joint=joint)]


def _data(setting: Setting, original: Graph, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Inputs to calibrate on, drawn by the seed, others beside them, and those to test on.

    If they come from one set, those beside are the ones to test on.
    """
    specs = input_specs(original)
    drawn = datasets.open(setting.calibration, preprocess=setting.preprocess).bind(specs)
    order = np.random.default_rng(seed).permutation(len(drawn))
    calibration = drawn.select(order[: setting.inputs])
    beside = drawn.select(order[setting.inputs : setting.inputs + _BESIDE])
    if setting.test == setting.calibration:
        return calibration, beside, beside
    return (
        calibration,
        beside,
        datasets.open(setting.test, preprocess=setting.preprocess).bind(specs),
    )


@cache
def _original(model: str) -> Graph:
    graph = Graph.load(model)
    FoldBatchNorm().run(graph, Context(original=graph))
    return graph


def _scores(graph: Graph, dataset: Dataset) -> np.ndarray:
    """The first output for every input: (input, class)."""
    with Session.open(graph) as session:
        found = [session.run(feeds)[0] for feeds in dataset.batches(_BATCH)]
    return np.concatenate(found).astype(np.float64)


@cache
def _wanted(setting: Setting, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What the original gives for the inputs beside, and for those to test on."""
    original = _original(setting.model)
    _, beside, test = _data(setting, original, seed)
    return _scores(original, beside), _scores(original, test)


def _divergence(made: np.ndarray, wanted: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence of the classes' probabilities, in nats."""
    first, second = log_softmax(wanted, axis=1), log_softmax(made, axis=1)
    return float((np.exp(first) * (first - second)).sum(axis=1).mean())


def _facts(setting: Setting, cell: Cell) -> dict[str, object]:
    """What tells one row from others."""
    return {
        "model": Path(setting.model).name,
        **asdict(cell),
        "joint": setting.joint,
        "mirror": setting.mirror,
    }


def measured(setting: Setting, cell: Cell) -> dict[str, object]:
    """The row of one cell: percentages of the test data, the part of the MACs, CPU seconds."""
    original = _original(setting.model)
    calibration, beside, test = _data(setting, original, cell.seed)
    labels, graph, start = test.labels, original.clone(), time.process_time()
    row = {**_facts(setting, cell), "inputs": len(calibration)}
    try:
        for step in cell.steps(setting):
            step.run(graph, Context(original=original, calibration=calibration, seed=cell.seed))
    except GraphoptError as error:
        return {**row, "error": str(error)}
    seconds = time.process_time() - start
    first, second = _wanted(setting, cell.seed)
    made, wanted = _scores(graph, test).argmax(axis=1), second.argmax(axis=1)
    assert labels is not None, "the test data have labels"
    return {
        **row,
        "left": round(cost(graph).macs / cost(original).macs, 4),
        "divergence": round(_divergence(_scores(graph, beside), first), 5),
        "base": round(100 * float((wanted == labels).mean()), 2),
        "top1": round(100 * float((made == labels).mean()), 2),
        "agreement": round(100 * float((made == wanted).mean()), 2),
        "tested": len(test),
        "seconds": round(seconds, 1),
    }


def _cells(given: argparse.Namespace) -> Iterator[Cell]:
    ways = sorted(given.ways, key=WAYS.index, reverse=True)  # what takes longest comes first
    for way, macs, seed, name in product(ways, given.macs, range(given.seeds), given.criteria):
        if name != SURGEON or way == "remove-and-refit":
            yield Cell(name, way, macs, seed)


def _read(path: Path) -> list[dict[str, object]]:
    """The rows of a file; those of a setting that is no more are left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if not row.get("gradients")]


def _work(setting: Setting, cells: Sequence[Cell], target: Path, jobs: int) -> None:
    # Threads of the linear algebra are counted when a worker starts.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with (
        target.open("a") as file,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
    ):
        for done in as_completed([pool.submit(measured, setting, cell) for cell in cells]):
            line = json.dumps(done.result())
            print(line, flush=True)
            file.write(f"{line}\n")
            file.flush()


def table(rows: Sequence[dict[str, object]]) -> str:
    """Markdown: top-1 and agreement, means over seeds, a column for each way and part of MACs."""
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    budgets = sorted({float(str(row["macs"])) for row in rows}, reverse=True)
    ways = [way for way in WAYS if any(row["way"] == way for row in rows)]
    columns = list(product(budgets, ways))
    text = []
    for model in models:
        own = [row for row in rows if row["model"] == model and "top1" in row]
        base = np.mean([float(str(row["base"])) for row in own])
        text += ["", f"{model}, {base:.2f} % before; top-1 / agreement, in percent", ""]
        text.append("| criterion | " + " | ".join(f"{m:g} {way}" for m, way in columns) + " |")
        text.append("|---" * (len(columns) + 1) + "|")
        for name in dict.fromkeys(str(row["criterion"]) for row in own):
            cells = [_mean(own, name, macs, way) for macs, way in columns]
            text.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def _mean(rows: Sequence[dict[str, object]], name: str, macs: float, way: str) -> str:
    found = [
        (float(str(row["top1"])), float(str(row["agreement"])))
        for row in rows
        if (row["criterion"], row["macs"], row["way"]) == (name, macs, way)
    ]
    if not found:
        return "-"
    top1, agreement = np.mean(found, axis=0)
    spread = f" ±{np.std([one for one, _ in found], ddof=1):.2f}" if len(found) > 1 else ""
    return f"{top1:.2f}{spread} / {agreement:.2f}"


def main() -> None:
    """Read the arguments; measure what is missing, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--to", type=Path, default=Path("prune_table.jsonl"))
    parser.add_argument("--print", dest="shown", type=Path, help="print a file as tables")
    parser.add_argument("--calibration", default="cifar10:train")
    parser.add_argument("--test", default="cifar10:test", help="as --calibration: its other rows")
    parser.add_argument("--preprocess", help="imagenet for the networks of CIFAR-10")
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.75, 0.5, 0.35])
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA), choices=CRITERIA)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--joint", type=int, default=0, help="rounds for two layers in a row")
    parser.add_argument("--mirror", action="store_true", help="remove-and-refit: mirrored images")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    given = parser.parse_args()
    if given.shown is not None:
        print(table(_read(given.shown)))
        return
    if given.model is None:
        parser.error("give a model, or --print FILE")
    setting = Setting(
        given.model,
        given.calibration,
        given.test,
        given.preprocess,
        given.inputs,
        given.joint,
        given.mirror,
    )
    known = {tuple(row.get(key) for key in _KEY) for row in _read(given.to)}
    cells = [
        cell
        for cell in _cells(given)
        if tuple(_facts(setting, cell)[key] for key in _KEY) not in known
    ]
    _work(setting, cells, given.to, given.jobs)


if __name__ == "__main__":
    main()
