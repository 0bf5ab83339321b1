"""Measure graphopt and the other clean-up tools on a folder of ONNX models, in one table.

    python -m models.peers --models DIR --peer-python PEERS/bin/python --json peers.json

Each tool works on each model in one cold process with its default settings, one process at a
time (after one unmeasured run that warms the disk cache); imports, loading and saving are in the
figures. Seconds, CPU seconds and peak resident memory are the kernel's account of that process
(peak: the largest single one, if it starts others). Then peer_check.py compares the file with the
original in ONNX Runtime, graph optimizations off. Nodes are operators without Constant, with
those in subgraph bodies and model functions.

The JSON file keeps every row: a later run adds what is missing or belongs to a changed model;
`--tools graphopt --again` measures one tool anew beside the stored others. The peers' environment
needs onnx, onnxruntime, onnxsim, onnxslim, onnxoptimizer and onnxscript; the one that runs this
script onnx and onnxruntime.

Only the standard library is imported here: a child's peak memory is at least its parent's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from models.peer_table import OURS, Entry, Row, row_text, summary, table

CHECKER = Path(__file__).with_name("peer_check.py")

# Programs for `python -c`, with the model and the output file as arguments.
PROGRAMS: Mapping[str, str] = {
    "onnxslim": "import sys, onnxslim\nonnxslim.slim(sys.argv[1], sys.argv[2])",
    "onnxsim": (
        "import sys, onnx, onnxsim\n"
        "model, _ = onnxsim.simplify(sys.argv[1])\n"
        "onnx.save(model, sys.argv[2])"
    ),
    "onnxscript": (
        "import sys, onnx_ir, onnxscript.optimizer\n"
        "model = onnxscript.optimizer.optimize(onnx_ir.load(sys.argv[1]))\n"
        "onnx_ir.save(model, sys.argv[2])"
    ),
    "onnxoptimizer": (
        "import sys, onnx, onnxoptimizer\n"
        "onnx.save(onnxoptimizer.optimize(onnx.load(sys.argv[1])), sys.argv[2])"
    ),
    "ort-basic": (
        "import sys, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        "options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC\n"
        "options.optimized_model_filepath = sys.argv[2]\n"
        "ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])"
    ),
}
PACKAGES = ("onnx", "onnxruntime", "onnxslim", "onnxsim", "onnxscript", "onnxoptimizer")
VERSIONS = (
    "import importlib.metadata as m, json, sys\n"
    "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
)


@dataclass(frozen=True)
class Cost:
    """What one cold process took, and why it failed if it did."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    failure: str


def run_cold(command: Sequence[str], folder: Path, limit_s: float) -> Cost:
    """Run a command in `folder`, killed with its children after `limit_s`."""
    errors = folder / "stderr.txt"
    start = time.perf_counter()
    with errors.open("wb") as sink:
        try:
            process = subprocess.Popen(
                command, cwd=folder, stdout=sink, stderr=sink, start_new_session=True
            )
        except OSError as error:
            return Cost(0.0, 0.0, 0.0, f"cannot start {command[0]}: {error.strerror}")
    killer = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL))
    killer.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    killer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    failure = ""
    if process.returncode:
        lines = errors.read_text(errors="replace").strip().splitlines()
        failure = f"exit {process.returncode}: {lines[-1][:300] if lines else 'no message'}"
    if wall >= limit_s:
        failure = f"over {limit_s:g} s"
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, failure)


def measure(model: Path, tool: str, options: argparse.Namespace, *, latency: bool) -> Row:
    """Run one tool on one model and judge the file that it wrote."""
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        target = folder / "out" / model.name
        target.parent.mkdir()
        if tool == OURS:
            places = {"model": str(model), "output": str(target)}
            command = [word.format_map(places) for word in shlex.split(options.graphopt)]
        else:
            command = [options.peer_python, "-c", PROGRAMS[tool], str(model), str(target)]
        costs = [run_cold(command, folder, options.limit) for _ in range(options.repeats)]
        cost = min(costs, key=_cpu)
        row = Row(cost.wall_s, cost.cpu_s, cost.peak_mb, failure=cost.failure)
        if row.failure or not target.is_file():
            return replace(row, failure=row.failure or "no output file")
        written = [path for path in target.parent.rglob("*") if path.is_file()]
        row = replace(row, size_bytes=sum(path.stat().st_size for path in written))
        return judge(model, target, row, latency=latency)


def judge(model: Path, target: Path, row: Row, *, latency: bool) -> Row:
    """Fill in what peer_check.py finds, in a process of its own."""
    result = _check(model, target, *(["--latency"] if latency else []))
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        return replace(row, failure=f"check died ({result.returncode}): {lines[-1][:300]}")
    found = json.loads(result.stdout)
    latency_ratio = found.pop("latency")
    return replace(row, **found, latency=tuple(latency_ratio) if latency_ratio else None)


def describe(model: Path, sha256: str) -> Entry:
    """Start the entry of a model; one that ONNX Runtime cannot run ends the script."""
    result = _check(model)
    if result.returncode:
        sys.exit(f"peers: {model} cannot be run: {result.stderr.strip().splitlines()[-1]}")
    return Entry(sha256, model.stat().st_size, **json.loads(result.stdout))


def _check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_store(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read the rows of earlier runs and the peers' versions; an absent file holds none."""
    if not path.is_file():
        return {}, {}
    stored = json.loads(path.read_text())
    entries = {
        name: Entry(
            value["sha256"],
            value["size_bytes"],
            value["nodes"],
            value["response"],
            {tool: _row(row) for tool, row in value["rows"].items()},
        )
        for name, value in stored["models"].items()
    }
    return entries, stored["versions"]


def _row(stored: dict[str, object]) -> Row:
    row = Row(**stored)  # type: ignore[arg-type]  # written by asdict(Row)
    return replace(row, latency=tuple(row.latency)) if row.latency else row  # type: ignore[arg-type]


def write_store(path: Path, entries: Mapping[str, Entry], versions: Mapping[str, str]) -> None:
    """Write everything at once: a killed run leaves the rows that it finished."""
    models = {name: asdict(entries[name]) for name in sorted(entries)}
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({"versions": versions, "models": models}, indent=1) + "\n")
    fresh.replace(path)


def pending(
    models: Iterable[Path], entries: dict[str, Entry], options: argparse.Namespace
) -> list[tuple[Path, str, bool]]:
    """List (model, tool, with latency?) still to be measured; forget rows of changed files."""
    work: list[tuple[Path, str, bool]] = []
    for model in models:
        with model.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if model.name not in entries or entries[model.name].sha256 != sha256:
            entries[model.name] = describe(model, sha256)
        rows = entries[model.name].rows
        latency = any(fnmatch(model.name, pattern) for pattern in options.latency)
        for tool in options.tools or (*PROGRAMS, OURS):
            row = rows.get(tool)
            stale = row is None or (latency and not row.latency and not row.failure)
            if options.again or stale:
                work.append((model, tool, latency))
    return work


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=Path, required=True, help="folder of .onnx files")
    add("--only", default="*", help="measure only files of this pattern")
    add("--peer-python", type=Path, help="interpreter of the peers' environment")
    add("--tools", nargs="+", choices=(*PROGRAMS, OURS), help="measure no others")
    add("--again", action="store_true", help="measure what the file has already, too")
    add(
        "--graphopt",
        default=f"{OURS} optimize {{model}} -o {{output}} --no-bench",
        help="command of this project's own row (default: %(default)s)",
    )
    add("--latency", nargs="*", default=(), metavar="PATTERN", help="time the outputs of these too")
    add("--repeats", type=int, default=1, help="processes to run; the one of least CPU time counts")
    add("--limit", type=float, default=300.0, help="seconds a process may take (default: 300)")
    add("--tolerance", type=float, default=1e-4, help="difference over range that counts as wrong")
    add("--json", type=Path, required=True, help="file that keeps the rows")
    return parser.parse_args()


def _cpu(cost: Cost) -> float:
    return cost.cpu_s


def _size(path: Path) -> int:
    return path.stat().st_size


def main() -> None:
    options = arguments()
    models = sorted(path.resolve() for path in options.models.glob("*.onnx"))
    models = [path for path in models if fnmatch(path.name, options.only)]
    if not models:
        sys.exit(f"peers: no .onnx file in {options.models} is called {options.only}")
    entries, versions = read_store(options.json)
    work = pending(models, entries, options)
    if any(tool != OURS for _, tool, _ in work):
        if not options.peer_python:
            sys.exit("peers: --peer-python is needed to run the other tools")
        options.peer_python = options.peer_python.absolute()  # the venv's link, not its target
        ask = [options.peer_python, "-c", VERSIONS, *PACKAGES]
        versions = json.loads(subprocess.run(ask, capture_output=True, check=True).stdout)
    for tool in {tool for _, tool, _ in work}:  # unmeasured: bytecode and page cache get warm
        measure(min(models, key=_size), tool, options, latency=False)
    for model, tool, latency in work:
        row = entries[model.name].rows[tool] = measure(model, tool, options, latency=latency)
        write_store(options.json, entries, versions)
        print(f"{model.name} {tool} {row_text(row, options.tolerance)}", file=sys.stderr)
    for line in (*table(entries, options.tolerance), "", *summary(entries, options.tolerance)):
        print(line)


if __name__ == "__main__":
    main()
