"""Remove half of the channels of networks with graphopt and its peers, in one table.

    python -m models.prune_peers --models DIR --peer-python PYTHON --json FILE

measures every ONNX file of the folder, the light models of the onnx wheel and the architectures of
architectures.py, each tool in a process of its own: what is left of the multiply-accumulates
(counted on the ONNX file that comes out), whether that file runs, and seconds of processor time
from the loaded network to the pruned one. `--repeats N` takes medians of N interleaved runs.
`--latency PATTERN` times the two cut files in ONNX Runtime in pairs with the original, one thread.
`--synthetic` cuts a network of 10,000 nodes and 1,000,000 channels instead.

The JSON file keeps every row; a later run adds what is missing. The peers' environment needs
torch, torch-pruning, onnxsim and onnxscript, and what graphopt needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import median

from graphopt.cost import cost
from graphopt.errors import GraphoptError
from graphopt.ir import Graph
from graphopt.runtime import BenchPlan, Session, bench, runnable_feeds
from models.light import LIGHT, draw_light_model
from models.prune_synthetic import write_synthetic

__all__ = ["main"]

PEERS = ("torch-pruning", "onnxsim")
_Found = dict[str, object]


@dataclass(frozen=True)
class Row:
    """One tool on one network.

    `left` is the fraction of multiply-accumulates left; `seconds` those of each run; `latency` the
    ratio to the original with its 95 % interval.
    """

    left: float | None = None
    seconds: tuple[float, ...] = ()
    load_s: float = 0.0
    failure: str = ""
    exit: int | None = None
    difference: float | None = None
    families: tuple[tuple[int, bool], ...] = ()
    latency: tuple[float, float, float] | None = None


def ours(network: Path, folder: Path, options: argparse.Namespace, *, first: bool) -> _Found:
    """What the command line makes of a network, once, and the figures of one run."""
    worker = [sys.executable, "-m", "models.prune_ours", str(network), str(folder / "timed.onnx")]
    found = _run([*worker, *([] if first else ["--time-only"])], options.limit)
    if first:
        target = folder / "graphopt.onnx"
        command = ["-m", "graphopt", "optimize", network, "-o", target, "--no-bench"]
        command += ["--passes", "remove-channels{ratio=0.5}"]
        done = subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, check=False
        )
        found["exit"] = done.returncode
    return found


def theirs(tool: str, network: str, folder: Path, options: argparse.Namespace) -> _Found:
    command = [options.peer_python, "-m", "models.prune_theirs", tool, network]
    return _run([*command, str(folder / f"{tool}.onnx")], options.limit)


def _run(command: Sequence[str], limit_s: float) -> _Found:
    """Run a program that prints one JSON object last; a failure is its last line of complaint."""
    try:
        done = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"over {limit_s:g} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line.split(":")[0]] or lines
        return {"failure": (errors or [f"exit {done.returncode}"])[-1].strip()[:160]}
    found: _Found = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    network: Path, module: str | None, options: argparse.Namespace, tools: Sequence[str]
) -> dict[str, Row]:
    """Every tool on one network, interleaved; `module` names it where a peer takes the module."""
    with tempfile.TemporaryDirectory(prefix="prune-") as name:
        folder = Path(name)
        runs: dict[str, list[_Found]] = {tool: [] for tool in tools}
        for turn in range(options.repeats):
            for tool, found in runs.items():
                if any("failure" in one for one in found):
                    continue
                if tool == "graphopt":
                    found.append(ours(network, folder, options, first=not turn))
                else:
                    native = module if tool == "torch-pruning" else None
                    found.append(theirs(tool, native or str(network), folder, options))
        latency = any(fnmatch(network.name, pattern) for pattern in options.latency)
        return {
            tool: _row(network, folder / f"{tool}.onnx", found, latency=latency)
            for tool, found in runs.items()
        }


def _row(
    network: Path, target: Path, runs: Sequence[Mapping[str, object]], *, latency: bool
) -> Row:
    first = runs[0]
    failure = next((str(run["failure"]) for run in runs if "failure" in run), "")
    seconds = tuple(float(str(run["seconds"])) for run in runs if "seconds" in run)
    known = {key: first[key] for key in ("exit", "difference", "load_s") if key in first}
    kinds = first.get("families", ())
    assert isinstance(kinds, list | tuple)
    row = Row(seconds=seconds, failure=failure, families=tuple(map(tuple, kinds)), **known)  # type: ignore[arg-type]  # what the worker printed
    if failure or not target.is_file():
        return row
    try:
        left, ratio = _judge(network, target, latency=latency)
    except GraphoptError as error:
        return Row(**{**vars(row), "failure": f"does not run: {str(error)[:120]}"})
    return Row(**{**vars(row), "left": left, "latency": ratio})


def _judge(
    network: Path, target: Path, *, latency: bool
) -> tuple[float | None, tuple[float, float, float] | None]:
    """What is left of the work, and of the time if that is asked for; raises if it cannot run."""
    original, cut = Graph.load(network), Graph.load(target)
    feeds = runnable_feeds(original, 0, batch=1).arrays
    renamed = dict(zip(cut.inputs, (feeds[name] for name in original.inputs), strict=True))
    with Session.open(cut) as session:
        session.run(renamed)
    before = cost(original).macs
    left = cost(cut).macs / before if before else None
    if not latency:
        return left, None
    result = bench(original, _named(cut, original), feeds=feeds, plan=BenchPlan(pairs=100))
    assert result.ratio is not None
    assert result.interval is not None
    return left, (result.ratio, *result.interval)


def _named(cut: Graph, original: Graph) -> Graph:
    """The cut network under the original's names of inputs: a pair is fed alike."""
    if cut.inputs == original.inputs:
        return cut
    model = cut.to_model()
    names = dict(zip(cut.inputs, original.inputs, strict=True))
    for value in model.graph.input:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return Graph.load(model)


def table(rows: Mapping[str, Mapping[str, Row]]) -> Iterator[str]:
    """One line per network."""
    yield (
        f"{'network':46} exit families cut==mask  left   TP     onnxsim | seconds: load "
        f"cut    TP    TP/cut | notes"
    )
    for name, tools in rows.items():
        mine = tools.get("graphopt", Row())
        peer, other = tools.get("torch-pruning", Row()), tools.get("onnxsim", Row())
        times = median(mine.seconds or [0.0]), median(peer.seconds or [0.0])
        ratio = f"{times[1] / times[0]:6.1f}" if all(times) else f"{'-':>6}"
        notes = [f"graphopt: {mine.failure}"] if mine.failure else []
        notes += [f"{tool}: {row.failure}" for tool, row in tools.items() if row.failure][:2]
        notes += [
            "{} {:.3f} [{:.3f} {:.3f}]".format(tool, *row.latency)
            for tool, row in tools.items()
            if row.latency
        ]
        yield (
            f"{name[:46]:46} {mine.exit if mine.exit is not None else '-':>4} "
            f"{len(mine.families):8} {_number(mine.difference, '.0e'):>9}  "
            f"{_number(mine.left)} {_number(peer.left)}  {_number(other.left)}   | "
            f"{mine.load_s:13.2f} {times[0]:5.2f} {times[1]:6.2f} {ratio} | {'; '.join(notes)}"
        ).rstrip()


def _number(value: float | None, form: str = ".3f") -> str:
    return "  -  " if value is None else f"{value:{form}}"


def read(path: Path) -> dict[str, dict[str, Row]]:
    """The rows of earlier runs."""
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text())
    return {
        name: {tool: Row(**row) for tool, row in tools.items()} for name, tools in stored.items()
    }


def write(path: Path, rows: Mapping[str, Mapping[str, Row]]) -> None:
    stored = {
        name: {tool: asdict(row) for tool, row in tools.items()} for name, tools in rows.items()
    }
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(stored, indent=1) + "\n")
    fresh.replace(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=Path, required=True, help="folder of .onnx files")
    add("--only", nargs="+", default=["*"], metavar="PATTERN", help="measure only these networks")
    add("--peer-python", help="interpreter of the peers' environment; without it graphopt alone")
    add("--tools", nargs="+", choices=("graphopt", *PEERS), help="measure no others")
    add("--again", action="store_true", help="measure what the file has already, too")
    add("--repeats", type=int, default=1, help="interleaved runs of each tool (default: 1)")
    add("--latency", nargs="*", default=(), metavar="PATTERN", help="time the outputs of these too")
    add("--limit", type=float, default=300.0, help="seconds a process may take (default: 300)")
    add("--synthetic", action="store_true", help="cut a very large network instead, and stop")
    add("--json", type=Path, required=True, help="file that keeps the rows")
    return parser.parse_args()


def networks(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Files, with the name of the module they were traced from, if there is one."""

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in options.only)

    files = sorted(options.models.resolve().glob("*.onnx"))
    yield from ((path, None) for path in files if wanted(path.name))
    yield from ((draw_light_model(name, folder), None) for name in LIGHT if wanted(name))
    from models.architectures import ARCHITECTURES, traced  # torch, not needed for files

    for name in ARCHITECTURES:
        if wanted(f"{name}.onnx"):
            yield traced(name, folder), name


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="prune-") as name:
        folder = Path(name)
        if options.synthetic:
            path = write_synthetic(folder / "synthetic.onnx")
            command = [
                sys.executable,
                "-m",
                "models.prune_ours",
                str(path),
                str(folder / "cut.onnx"),
            ]
            print(_run([*command, "--time-only"], options.limit))
            return
        rows = read(options.json)
        tools = options.tools or ("graphopt", *(PEERS if options.peer_python else ()))
        for path, module in networks(options, folder):
            known = set(rows.get(path.name, {}))
            if known >= set(tools) and not options.again:
                continue
            missing = tools if options.again else [tool for tool in tools if tool not in known]
            found = measure(path, module, options, missing)
            rows[path.name] = {**rows.get(path.name, {}), **found}
            write(options.json, rows)
            *_, line = table({path.name: rows[path.name]})
            print(line, file=sys.stderr, flush=True)
    for line in table(rows):
        print(line)


if __name__ == "__main__":
    main()
