"""The report as one HTML page that needs nothing from the network."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib import resources
from string import Template

from graphopt.manager import PassRecord, Report
from graphopt.report.layers import layer_errors
from graphopt.report.numbers import change, loss, macs, score, significant, threads
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
        layers=layer_errors(report),
        passes="".join(_pass_row(r) for r in report.passes if r.modified or not r.accepted),
        idle=_idle(report),
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
        f"{threads(bench.threads)}): {escape(bench.verdict)}."
    )


def _totals(report: Report) -> Iterator[str]:
    before, after = report.baseline, report.result
    if before.latency is not None and after.latency is not None:
        old, new = before.latency, after.latency
        noise = report.bench is not None and report.bench.verdict == "noise"
        yield _total("latency, ms (p10 to p90)", _spread(old), _spread(new),
                     old.median_ms, new.median_ms, soft=noise)  # fmt: skip
    for label, old_size, new_size in _sizes(report):
        texts = f"{old_size:,}", f"{new_size:,}"
        if label == "MACs":
            texts = macs(before.size), macs(after.size)
        yield _total(label, *texts, old_size, new_size)
    if report.metric is not None and report.drop is not None:
        scores = score(before.metric), score(after.metric)
        yield _cells(escape(report.metric), *scores, loss(report))


def _sizes(report: Report) -> Iterator[tuple[str, int, int]]:
    old, new = report.baseline.size, report.result.size
    yield "file, bytes", old.bytes, new.bytes
    yield "MACs", old.macs, new.macs
    yield "parameters", old.parameters, new.parameters
    yield "nodes", old.nodes, new.nodes


def _total(
    label: str, before: str, after: str, old: float, new: float, *, soft: bool = False
) -> str:
    text = change(old, new)
    word = "soft" if soft or not text else "good" if new < old else "bad"
    return _cells(label, before, after, f'<span class="{word}">{text or "="}</span>')


def _cells(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _spread(latency: Latency) -> str:
    median, low, high = map(significant, (latency.median_ms, latency.p10_ms, latency.p90_ms))
    return f"{median} ({low} to {high})"


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
        ends = [min(value, 1.25) * _WIDTH for value in spread or ()]
        label_at = _LEFT + max(length, _WIDTH, *ends) + 8
        parts.append(
            f'<text x="0" y="{top + 19}">{escape(label)}</text>'
            f'<rect class="before" x="{_LEFT}" y="{top + 4}" width="{_WIDTH}" height="9"/>'
            f'<rect class="after" x="{_LEFT}" y="{top + 15}" width="{length:.1f}" height="9"/>'
            f'<text x="{label_at:.1f}" y="{top + 19}">{ratio:.1%}</text>'
        )
        if ends:
            low, high = (_LEFT + end for end in ends)
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
    result = "changed" if record.accepted else '<span class="bad">rolled back</span>'
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


def _idle(report: Report) -> str:
    """Passes that found nothing to do, each once."""
    busy = {r.name for r in report.passes if r.modified or not r.accepted}
    names = dict.fromkeys(r.name for r in report.passes if r.name not in busy)
    return f"Nothing to do: {escape(', '.join(names))}." if names else ""


def _step(old: int, new: int) -> str:
    return f"{new:,}" if old == new else f"{old:,} → {new:,}"


def _remarks(report: Report) -> str:
    lines = [f"rolled back {r.name}: {r.reason}" for r in report.passes if not r.accepted]
    lines += [f"not met: {reason}" for reason in report.unmet]
    lines += report.remarks
    lines += [
        f"not counted in MACs: {name} x{count}"
        for name, count in report.result.size.uncosted.items()
    ]
    if not lines:
        return ""
    return "<h2>Remarks</h2>" + "".join(f"<p>{escape(line)}</p>" for line in lines)
