"""Numbers as people read them, the same on a terminal and on the page; and as JSON takes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from graphopt.manager import Report, Size
from graphopt.passbase import Note

__all__ = ["change", "loss", "macs", "score", "significant", "strict_json", "threads"]


def significant(value: float) -> str:
    """Three significant digits and never an exponent: 1,235 and 6.10 and 0.00476."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def change(old: float, new: float) -> str:
    """The relative change, as "-12.3 %"; nothing where there is none to speak of."""
    text = f"{(new / old - 1) * 100:+.1f} %" if old else ""
    return "" if text.strip("+-") == "0.0 %" else text


def score(value: float | None) -> str:
    """A metric with four decimals; one too small for them in full."""
    if value is None:
        return ""
    return f"{value:.2e}" if 0 < abs(value) < 0.001 else f"{value:.4f}"


def macs(size: Size) -> str:
    """A count that leaves out operators says so."""
    if not size.uncosted:
        return f"{size.macs:,}"
    return f"at least {size.macs:,}" if size.macs else "unknown"


def loss(report: Report) -> str:
    """What the metric has lost, beside what it may, or what it has gained."""
    if report.drop is None:
        return ""
    if report.drop < 0:
        return f"gain {score(-report.drop)}"
    allowed = "" if report.max_drop is None else f" of {report.max_drop:g} allowed"
    return f"drop {score(report.drop)}{allowed}"


def threads(count: int) -> str:
    """0 stands for all cores, as in the option."""
    return f"{count or 'all'} thread{'' if count == 1 else 's'}"


def strict_json(document: Mapping[str, Note]) -> str:
    """Text that every reader of JSON takes: what is not finite becomes null."""
    return json.dumps(_finite(document), indent=2, allow_nan=False, default=str) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
