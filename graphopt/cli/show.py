"""What the command line shows: tables on a terminal, plain text in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.table import Table

from graphopt.manager import Measured, PassRecord, Report
from graphopt.report import change, loss, macs, score, significant, threads

__all__ = ["Progress", "print_table", "show_report"]


def _console() -> Console:
    """Names of tensors and files are shown as they are: "[b]" and ":x:" mean nothing."""
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False, emoji=False)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1
) -> None:
    """Print a table; the first `left` columns are text, the others numbers.

    In a pipe the cells are tab-separated under a plain heading, one row per line.
    """
    if not sys.stdout.isatty():
        if title:
            print(f"# {title}")
        print("\t".join(columns))
        for row in rows:
            print("\t".join(row))
        return
    rows = list(rows)
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        longest = max((len(row[place]) for row in rows), default=0)
        number = place >= left  # where it is narrow, text is broken, a number never
        table.add_column(
            column.replace(" ", "\n") if number and len(column) > longest else column,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number,
        )
    for row in rows:
        table.add_row(*row)
    _console().print(table)


class Progress:
    """A spinner that names the pass at work, on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._step = ""

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._status = Console(stderr=True, markup=False, emoji=False).status("loading")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def started(self, step: str) -> None:
        self._step = step
        self._show(step)

    def progress(self, what: str, fraction: float) -> None:
        self._show(f"{self._step}: {what} {fraction:.0%}")

    def finished(self, record: PassRecord) -> None:
        if self._status is not None and not record.accepted:
            self._status.console.print(f"rolled back {record.name}: {record.reason}")

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)


def show_report(report: Report) -> None:
    """What was gained, then what was lost, with the baseline beside it."""
    print_table("", ["", "before", "after", "change"], _gained(report))
    _show_passes(report)
    _show_verdict(report)


def _gained(report: Report) -> Iterable[Sequence[str]]:
    before, after = report.baseline.size, report.result.size
    if report.baseline.latency is not None and report.result.latency is not None:
        old, new = report.baseline.latency.median_ms, report.result.latency.median_ms
        yield "latency (ms)", _spread(report.baseline), _spread(report.result), change(old, new)
    yield "file (bytes)", f"{before.bytes:,}", f"{after.bytes:,}", change(before.bytes, after.bytes)
    yield "MACs", macs(before), macs(after), change(before.macs, after.macs)
    yield (
        "parameters",
        f"{before.parameters:,}",
        f"{after.parameters:,}",
        change(before.parameters, after.parameters),
    )
    yield "nodes", f"{before.nodes:,}", f"{after.nodes:,}", change(before.nodes, after.nodes)
    if report.metric is not None:
        yield (
            report.metric,
            score(report.baseline.metric),
            score(report.result.metric),
            loss(report),
        )


def _spread(measured: Measured) -> str:
    latency = measured.latency
    assert latency is not None, "only measured latencies are shown"
    median, low, high = map(significant, (latency.median_ms, latency.p10_ms, latency.p90_ms))
    return f"{median} [{low}, {high}]"


def _show_passes(report: Report) -> None:
    changed = [record for record in report.passes if record.modified or not record.accepted]
    if not changed:
        return
    rows = [
        [
            record.name,
            record.promise,
            ("kept" if record.cached else "yes") if record.accepted else "rolled back",
            f"{record.seconds:.2f}",
            f"{record.before.nodes} -> {record.after.nodes}",
            "" if record.max_abs_diff is None else f"{record.max_abs_diff:.2g}",
        ]
        for record in changed
    ]
    columns = ["pass", "promise", "accepted", "seconds", "nodes", "largest difference"]
    print_table("passes that changed something", columns, rows, left=3)


def _show_verdict(report: Report) -> None:
    console = _console()
    if report.bench is not None and report.bench.ratio is not None:
        low, high = report.bench.interval or (report.bench.ratio, report.bench.ratio)
        console.print(
            f"latency ratio {report.bench.ratio:.3f} (95 % interval {low:.3f} to {high:.3f}, "
            f"{report.bench.pairs} pairs, {threads(report.bench.threads)}): {report.bench.verdict}"
        )
    for record in report.passes:
        if not record.accepted:
            console.print(f"rolled back {record.name}: {record.reason}", style="yellow")
    for remark in report.remarks:
        console.print(remark)
    if report.gate.startswith("not checked"):
        console.print(report.gate, style="yellow")
    for reason in report.unmet:
        console.print(f"not met: {reason}", style="yellow")
    console.print(f"written: {report.output}")
