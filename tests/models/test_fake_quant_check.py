"""models/fake_quant_check.py: a trained network agrees, and what is quantized already is told."""

from __future__ import annotations

from pathlib import Path

import pytest

import graphopt as go
from models.fake_quant_check import Agreement, check, main
from passes.quantize_static import QuantizeStatic

DIGITS = Path(__file__).resolve().parent.parent.parent / "models" / "digits_resnet.onnx"


def test_view_and_integers_agree(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(DIGITS)])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| digits_resnet | ")
    assert row.endswith(" yes |")


def test_what_cannot_be_compared_is_told() -> None:
    graph = go.load(DIGITS)
    context = go.Context(original=graph.clone(), calibration=go.data.open("digits"))
    QuantizeStatic(pays=False, samples=16).run(graph, context)
    found = check(graph)
    assert isinstance(found, str)
    assert "quantized already" in found


def test_more_than_a_step_apart_does_not_hold() -> None:
    assert Agreement(1, (3.0, 1.0), (1.0, 1.0), (3.0, 1.0)).holds
    assert not Agreement(1, (0.0, 0.0), (1.5, 0.2), (1.5, 0.2)).holds
