"""What a run reports: sizes before and after, every pass, and whether the request was met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from graphopt.cost import cost
from graphopt.ir import Graph
from graphopt.passbase import Note
from graphopt.runtime import BenchResult, Latency

__all__ = ["Measured", "PassRecord", "Report", "Size", "size_of", "size_of_source"]


@dataclass(frozen=True)
class Size:
    """What a graph costs; `macs` for batch 1, `uncosted` operators not included in it."""

    nodes: int
    parameters: int
    macs: int
    bytes: int
    uncosted: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Note]:
        return {
            "nodes": self.nodes,
            "parameters": self.parameters,
            "macs": self.macs,
            "bytes": self.bytes,
            "uncosted": dict(self.uncosted),
        }


def size_of(graph: Graph) -> Size:
    """Measure a graph; nodes of If, Loop and Scan bodies count, Constant nodes do not."""
    found = cost(graph)
    return Size(found.nodes, found.parameters, found.macs, graph.size_bytes(), found.uncosted)


def size_of_source(graph: Graph) -> Size:
    """The size of the file that was loaded, before normalisation, where it is known."""
    size = size_of(graph)
    if graph.source is None:
        return size
    return replace(size, nodes=graph.source.nodes, bytes=graph.source.size_bytes)


@dataclass(frozen=True)
class Measured:
    """Everything known of the model before or after the run; None is what was not measured."""

    size: Size
    latency: Latency | None = None
    metric: float | None = None

    def to_json(self) -> dict[str, Note]:
        latency: Note = None
        if self.latency is not None:
            latency = {
                "median": self.latency.median_ms,
                "p10": self.latency.p10_ms,
                "p90": self.latency.p90_ms,
            }
        return {**self.size.to_json(), "latency_ms": latency, "metric": self.metric}


@dataclass(frozen=True)
class PassRecord:
    """One pass of a run; `reason` says why it was rolled back, or what could not be checked."""

    name: str
    options: Mapping[str, Note]
    promise: str
    seconds: float
    modified: bool
    before: Size
    after: Size
    accepted: bool = True
    reason: str | None = None
    max_abs_diff: float | None = None
    metric: float | None = None
    cached: bool = False
    notes: Mapping[str, Note] = field(default_factory=dict)

    def to_json(self) -> dict[str, Note]:
        return {
            "name": self.name,
            "options": dict(self.options),
            "promise": self.promise,
            "seconds": round(self.seconds, 4),
            "accepted": self.accepted,
            "modified": self.modified,
            "reason": self.reason,
            "max_abs_diff": self.max_abs_diff,
            "metric": self.metric,
            "cached": self.cached,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "notes": dict(self.notes),
        }


@dataclass(frozen=True)
class Report:
    """The whole run. `unmet` is empty if everything that was asked for was reached."""

    version: str
    seed: int
    baseline: Measured
    result: Measured
    passes: tuple[PassRecord, ...]
    metric: str | None = None
    max_drop: float | None = None
    drop: float | None = None
    bench: BenchResult | None = None
    gate: str = ""
    doubt: str | None = None
    unmet: tuple[str, ...] = ()
    input: Path | None = None
    output: Path | None = None

    def with_files(self, source: Path | None, target: Path | None) -> Report:
        return replace(self, input=source, output=target)

    @property
    def channels(self) -> Note:
        """What was cut: {initializer: {axis: [kept indices of the original]}}, None if nothing."""
        cuts = [r.notes["channels"] for r in self.passes if r.accepted and "channels" in r.notes]
        return cuts[-1] if cuts else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the metric and passes that stay have to say to people."""
        said = [record for record in self.passes if record.accepted and record.notes.get("remark")]
        doubts = () if self.doubt is None else (self.doubt,)
        return *doubts, *(f"{record.name}: {record.notes['remark']}" for record in said)

    def to_json(self) -> dict[str, Note]:
        """The document of `--json`."""
        return {
            "graphopt": self.version,
            "input": None if self.input is None else str(self.input),
            "output": None if self.output is None else str(self.output),
            "seed": self.seed,
            "baseline": self.baseline.to_json(),
            "result": self.result.to_json(),
            "metric": self.metric,
            "max_drop": self.max_drop,
            "drop": self.drop,
            "bench": _bench_json(self.bench),
            "gate": self.gate,
            "unmet": list(self.unmet),
            "remarks": list(self.remarks),
            "passes": [record.to_json() for record in self.passes],
        }

    def __str__(self) -> str:
        before, after = self.baseline.size, self.result.size
        rows = [
            f"{name:<11} {_number(old)} -> {_number(new)}{_change(old, new)}"
            for name, old, new in (
                ("nodes", before.nodes, after.nodes),
                ("bytes", before.bytes, after.bytes),
                ("parameters", before.parameters, after.parameters),
                ("MACs", before.macs, after.macs),
            )
        ]
        if self.metric is not None:
            rows.append(f"{self.metric:<11} {self.baseline.metric} -> {self.result.metric}")
        if self.bench is not None and self.bench.ratio is not None:
            rows.append(f"{'latency':<11} {self.bench.ratio:.3f} of it, {self.bench.verdict}")
        rows.extend(f"rolled back: {r.name}: {r.reason}" for r in self.passes if not r.accepted)
        rows.extend(self.remarks)
        rows.extend(f"not met: {reason}" for reason in self.unmet)
        return "\n".join(rows)


def _bench_json(result: BenchResult | None) -> Note:
    if result is None:
        return None
    return {
        "ratio": result.ratio,
        "interval": None if result.interval is None else list(result.interval),
        "pairs": result.pairs,
        "threads": result.threads,
        "verdict": result.verdict,
    }


def _number(value: int) -> str:
    return f"{value:,}"


def _change(old: int, new: int) -> str:
    return f" ({new / old - 1:+.1%})" if old and new != old else ""
