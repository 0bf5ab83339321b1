"""Lay the measurements of the clean-up tools out as one table and its summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import geometric_mean

__all__ = ["OURS", "Entry", "Row", "row_text", "summary", "table"]

OURS = "graphopt"
YARDSTICK = "onnxslim"
BLIND = 1e-4  # outputs that move less with the input than this, over their range, prove little
LARGE_BYTES = 50_000_000  # below, the peak memory is that of the imports


@dataclass(frozen=True)
class Row:
    """One tool on one model; `latency` is the median ratio to the original and its quartiles."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    nodes: int | None = None
    size_bytes: int | None = None
    max_diff: float | None = None
    failure: str = ""
    mismatch: str = ""
    latency: tuple[float, float, float] | None = None

    def state(self, tolerance: float) -> str:
        """Say failed (no file that runs), wrong, or ok."""
        if self.failure:
            return "failed"
        wrong = self.mismatch or self.max_diff is None or self.max_diff > tolerance
        return "wrong" if wrong else "ok"


@dataclass
class Entry:
    """One model, how far its outputs move with the input, and a row for each tool measured."""

    sha256: str
    size_bytes: int
    nodes: int
    response: float
    rows: dict[str, Row] = field(default_factory=dict)


def table(entries: Mapping[str, Entry], tolerance: float) -> Iterator[str]:
    """Give one line per model and tool, the untouched model first."""
    yield (
        f"{'model':42} {'tool':13} {'nodes':>5} {'MB':>7} {'wall s':>7} {'CPU s':>7} "
        f"{'peak MB':>7} {'diff/range':>10} {'latency':>19}  note"
    )
    for name, entry in entries.items():
        size = f"{entry.size_bytes / 1e6:.2f}"
        blind = f"outputs move by {entry.response:.0e} only" if entry.response < BLIND else ""
        line = f"{name[:42]:42} {'(original)':13} {entry.nodes:>5} {size:>7} {'':46} {blind}"
        yield line.rstrip()
        for tool, row in entry.rows.items():
            yield f"{name[:42]:42} {tool:13} {row_text(row, tolerance)}"


def row_text(row: Row, tolerance: float) -> str:
    """Give the measured cells of a line and, where something is amiss, what."""
    size = "-" if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f}"
    ratio = "{:.3f} [{:.3f} {:.3f}]".format(*row.latency) if row.latency else ""
    text = (
        f"{_or_dash(row.nodes):>5} {size:>7} {row.wall_s:>7.2f} {row.cpu_s:>7.2f} "
        f"{row.peak_mb:>7.0f} {_difference(row):>10} {ratio:>19}  {_trouble(row, tolerance)}"
    )
    return text.rstrip()


def summary(entries: Mapping[str, Entry], tolerance: float) -> Iterator[str]:
    """Give a line per tool, then nodes against the best correct peer, then what went wrong."""
    tools = sorted({tool for entry in entries.values() for tool in entry.rows})
    yield (
        f"{'tool':13} models wrong failed   wall s    CPU s  wall/{YARDSTICK} CPU/{YARDSTICK} "
        f"nodes left  peak/file"
    )
    yield from (_tool_line(entries, tool, tolerance) for tool in tools)
    yield (
        f"wall, CPU: geometric means over the models on which {YARDSTICK} and the tool ran; nodes: "
        f"over all files that run; peak/file: worst over files of {LARGE_BYTES / 1e6:.0f} MB up"
    )
    yield ""
    yield from _node_race(entries, tolerance)
    yield ""
    for name, entry in entries.items():
        for tool, row in entry.rows.items():
            if row.state(tolerance) != "ok":
                yield f"{tool} on {name}: {_trouble(row, tolerance)}"


def _tool_line(entries: Mapping[str, Entry], tool: str, tolerance: float) -> str:
    found = [entry for entry in entries.values() if tool in entry.rows]
    rows = [entry.rows[tool] for entry in found]
    states = [row.state(tolerance) for row in rows]
    left = [row.nodes / entry.nodes for entry, row in zip(found, rows, strict=True) if row.nodes]
    peaks = [
        row.peak_mb * 2**20 / entry.size_bytes
        for entry, row in zip(found, rows, strict=True)
        if entry.size_bytes >= LARGE_BYTES and not row.failure
    ]
    return (
        f"{tool:13} {len(rows):>6} {states.count('wrong'):>5} {states.count('failed'):>6} "
        f"{sum(map(_wall, rows)):>8.1f} {sum(map(_cpu, rows)):>8.1f} "
        f"{_times_yardstick(found, tool, _wall):>13} {_times_yardstick(found, tool, _cpu):>12} "
        f"{f'{geometric_mean(left):.3f}' if left else '-':>10} "
        f"{f'{max(peaks):.1f}' if peaks else '-':>10}"
    )


def _wall(row: Row) -> float:
    return row.wall_s


def _cpu(row: Row) -> float:
    return row.cpu_s


def _times_yardstick(found: list[Entry], tool: str, cost: Callable[[Row], float]) -> str:
    pairs = [
        (entry.rows[tool], entry.rows[YARDSTICK]) for entry in found if YARDSTICK in entry.rows
    ]
    ratios = [cost(a) / cost(b) for a, b in pairs if not a.failure and not b.failure]
    return f"{geometric_mean(ratios):.2f}" if ratios else "-"


def _node_race(entries: Mapping[str, Entry], tolerance: float) -> Iterator[str]:
    behind = 0
    yield f"{'model':42} before {OURS:>8}  best correct peer"
    for name, entry in entries.items():
        counts = {
            tool: row.nodes
            for tool, row in entry.rows.items()
            if row.nodes is not None and row.state(tolerance) == "ok"
        }
        ours = counts.pop(OURS, None)
        best = min(counts.values(), default=None)
        more = ours is not None and best is not None and ours > best
        behind += more
        winners = ", ".join(tool for tool in counts if counts[tool] == best)
        numbers = f"{entry.nodes:>6} {_or_dash(ours):>8} {_or_dash(best):>5}"
        yield f"{name[:42]:42} {numbers}  {winners}{'  <- more nodes' if more else ''}"
    yield f"models on which {OURS} keeps more nodes than the best correct peer: {behind}"


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def _difference(row: Row) -> str:
    return "-" if row.max_diff is None else f"{row.max_diff:.1e}"


def _trouble(row: Row, tolerance: float) -> str:
    state = row.state(tolerance)
    detail = row.failure or row.mismatch or f"difference {_difference(row)} of the range"
    return "" if state == "ok" else f"{state.upper()}: {detail}"
