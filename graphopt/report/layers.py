"""A plot of what each layer alone on integers does to the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from graphopt.manager import PassRecord, Report
from graphopt.passbase import Note

__all__ = ["layer_errors"]

_ROW, _MOST = 20, 40
_LEFT, _WIDTH, _RIGHT = 320, 380, 160  # in SVG units


def layer_errors(report: Report) -> str:
    """A section for every pass that noted `layer_errors`, rolled back or not; else nothing."""
    return "".join(_section(record) for record in report.passes if record.notes.get("layer_errors"))


def _section(record: PassRecord) -> str:
    found = record.notes["layer_errors"]
    rows = [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
    bars = "".join(_bar(place, row) for place, row in enumerate(rows[:_MOST]))
    rest = f" The other {len(rows) - _MOST} layers lose less." if len(rows) > _MOST else ""
    width, height = _LEFT + _WIDTH + _RIGHT, min(len(rows), _MOST) * _ROW + 4
    return (
        f"<h2>Error of the outputs by layer: {escape(record.name)}</h2>"
        '<p class="soft">Each layer alone on integers: its share of the sum of all square errors, '
        f"and the signal over the error in decibels.{rest}</p>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="error by layer">{bars}</svg>'
    )


def _bar(place: int, row: Mapping[str, Note]) -> str:
    top, share = place * _ROW, _number(row.get("share"))
    length = max(share * _WIDTH, 1.0)
    name, text = str(row.get("layer")), f"{share:.1%}, {_number(row.get('decibels')):.1f} dB"
    kind = "before" if row.get("in_floats") else "after"
    if row.get("in_floats"):
        text += ", in floats"
    shown = name if len(name) <= 44 else f"…{name[-43:]}"
    return (
        f'<text x="0" y="{top + 14}">{escape(shown)}<title>{escape(name)}</title></text>'
        f'<rect class="{kind}" x="{_LEFT}" y="{top + 4}" width="{length:.1f}" height="12"/>'
        f'<text x="{_LEFT + length + 8:.1f}" y="{top + 14}">{text}</text>'
    )


def _number(value: Note) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
