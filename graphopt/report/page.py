"""The report as one HTML page that needs nothing from the network."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib import resources
from string import Template

from graphopt.manager import Measured, PassRecord, Report
from graphopt.runtime import Latency

__all__ = ["render"]

_ROW = 34
_LEFT, _WIDTH = 120, 640  # of the bars, in SVG units; 100 % ends at _LEFT + _WIDTH


def render(report: Report) -> str:
    """Fill the page; every text that comes from outside is escaped."""
    page = Template((resources.files("graphopt.report") / "page.html").read_text())
    name = report.input.name if report.input is not None else "model"
    return page.substitute(
        title=escape(name),
        files=escape(f"{report.input} → {report.output}"),
        verdict=_verdict(report),
        totals="".join(_totals(report)),
        bars=_bars(report),
        passes="".join(map(_pass_row, report.passes)),
        remarks=_remarks(report),
        version=escape(report.version),
        seed=report.seed,
        gate=escape(report.gate if report.gate.startswith("not") else ""),
    )


def _verdict(report: Report) -> str:
    bench = report.bench
    if bench is None or bench.ratio is None or bench.interval is None:
        return "Latency was not measured."
    low, high = bench.interval
    word = {"faster": "good", "slower": "bad"}.get(bench.verdict, "soft")
    return (
        f'Latency ratio <b class="{word}">{bench.ratio:.3f}</b> '
        f"(95 % interval {low:.3f} to {high:.3f} over {bench.pairs} interleaved pairs, "
        f"{bench.threads} threads): {escape(bench.verdict)}."
    )


def _totals(report: Report) -> Iterator[str]:
    before, after = report.baseline, report.result
    if before.latency is not None and after.latency is not None:
        old, new = before.latency, after.latency
        yield _total(
            "latency, ms (p10 to p90)", _spread(old), _spread(new), old.median_ms, new.median_ms
        )
    for label, old_size, new_size in _sizes(report):
        yield _total(label, f"{old_size:,}", f"{new_size:,}", old_size, new_size)
    if report.metric is not None and report.drop is not None:
        budget = "" if report.max_drop is None else f" of {report.max_drop:g} allowed"
        yield _cells(escape(report.metric), _metric(before), _metric(after),
                     f"drop {report.drop:.4f}{budget}")  # fmt: skip


def _sizes(report: Report) -> Iterator[tuple[str, int, int]]:
    old, new = report.baseline.size, report.result.size
    yield "file, bytes", old.bytes, new.bytes
    yield "MACs", old.macs, new.macs
    yield "parameters", old.parameters, new.parameters
    yield "nodes", old.nodes, new.nodes


def _total(label: str, before: str, after: str, old: float, new: float) -> str:
    change = f"{(new / old - 1) * 100:+.1f} %" if old and old != new else "="
    word = "good" if new < old else "bad" if new > old else "soft"
    return _cells(label, before, after, f'<span class="{word}">{change}</span>')


def _cells(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _spread(latency: Latency) -> str:
    return f"{latency.median_ms:.3g} ({latency.p10_ms:.3g} to {latency.p90_ms:.3g})"


def _metric(measured: Measured) -> str:
    return "" if measured.metric is None else f"{measured.metric:.4f}"


def _bars(report: Report) -> str:
    """Pairs of bars: the original at 100 %, the result beside it, whiskers from p10 to p90."""
    rows: list[tuple[str, float, float, tuple[float, float] | None]] = [
        (label, float(old), float(new), None) for label, old, new in _sizes(report) if old
    ]
    old_time, new_time = report.baseline.latency, report.result.latency
    if old_time is not None and new_time is not None:
        whisker = (new_time.p10_ms / old_time.median_ms, new_time.p90_ms / old_time.median_ms)
        rows.insert(0, ("latency", old_time.median_ms, new_time.median_ms, whisker))
    parts = []
    for place, (label, old, new, spread) in enumerate(rows):
        top = place * _ROW
        ratio = new / old
        length = min(ratio, 1.25) * _WIDTH
        parts.append(
            f'<text x="0" y="{top + 19}">{escape(label)}</text>'
            f'<rect class="before" x="{_LEFT}" y="{top + 4}" width="{_WIDTH}" height="9"/>'
            f'<rect class="after" x="{_LEFT}" y="{top + 15}" width="{length:.1f}" height="9"/>'
            f'<text x="{_LEFT + max(length, _WIDTH) + 8:.1f}" y="{top + 19}">{ratio:.1%}</text>'
        )
        if spread is not None:
            low, high = (_LEFT + min(value, 1.25) * _WIDTH for value in spread)
            parts.append(
                f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{top + 19.5}" '
                f'y2="{top + 19.5}"/>'
            )
    width = _LEFT + int(1.25 * _WIDTH) + 80
    return (
        f'<svg viewBox="0 0 {width} {len(rows) * _ROW + 4}" role="img" '
        f'aria-label="result relative to the original">{"".join(parts)}</svg>'
    )


def _pass_row(record: PassRecord) -> str:
    before, after = record.before, record.after
    result = '<span class="bad">rolled back</span>'
    if record.accepted:
        result = "changed" if record.modified else '<span class="soft">nothing to do</span>'
    difference = "" if record.max_abs_diff is None else f"{record.max_abs_diff:.2g}"
    texts = "".join(f'<td class="text">{cell}</td>' for cell in (escape(record.promise), result))
    numbers = "".join(
        f"<td>{cell}</td>"
        for cell in (
            f"{record.seconds:.2f}",
            _step(before.nodes, after.nodes),
            _step(before.macs, after.macs),
            _step(before.bytes, after.bytes),
            difference,
        )
    )
    return f"<tr><td>{escape(record.name)}</td>{texts}{numbers}</tr>\n"


def _step(old: int, new: int) -> str:
    return f"{new:,}" if old == new else f"{old:,} → {new:,}"


def _remarks(report: Report) -> str:
    lines = [f"rolled back {r.name}: {r.reason}" for r in report.passes if not r.accepted]
    lines += [f"not met: {reason}" for reason in report.unmet]
    lines += [
        f"not counted in MACs: {name} x{count}"
        for name, count in report.result.size.uncosted.items()
    ]
    if not lines:
        return ""
    return "<h2>Remarks</h2>" + "".join(f"<p>{escape(line)}</p>" for line in lines)
