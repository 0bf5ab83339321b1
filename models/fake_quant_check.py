"""Compare fake quantization in the trainable view with ONNX Runtime's integers, in steps.

    python -m models.fake_quant_check MODEL.onnx ... [--most-mb 30]

Each model is quantized on drawn inputs after `lossless` and then run three ways on others: in the
trainable view, in ONNX Runtime as the graph says it (QuantizeLinear and float operators), and with
ONNX Runtime's kernels on integers. A step is that of the output's grid, or 1/255 of the output's
range where it has none. The view and the graph say the same, so they differ by float rounding that
turns a step where a sum lies halfway; kernels on integers round once more in every layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import graphopt as go
from graphopt.data import Dataset, input_specs
from graphopt.errors import GraphoptError
from graphopt.ir import Graph
from graphopt.lens import trainable
from graphopt.lens.dtypes import to_array, to_tensor
from graphopt.passbase import Context
from graphopt.runtime import Session, runnable_feeds
from passes.quantize_static import QuantizeStatic

__all__ = ["Agreement", "check", "main"]

_CALIBRATING, _COMPARING = 0, 1
"""Seeds of the inputs."""

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """How far results lie apart, in steps of the outputs: the largest, and 99.9 % of all."""

    layers: int
    view_and_graph: tuple[float, float]
    view_and_integers: tuple[float, float]
    graph_and_integers: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether view and integers are never more than a step apart."""
        return self.view_and_integers[0] <= 1.001


def check(source: Graph) -> Agreement | str:
    """Quantize a network and compare; or say why it cannot be."""
    graph = go.PassManager(["lossless"]).run(source, measure=False).graph
    result = graph.clone()
    feeds = dict(runnable_feeds(graph, _CALIBRATING).arrays)
    data = Dataset.from_arrays(feeds).bind(input_specs(graph))
    context = Context(original=graph, calibration=data)
    step = QuantizeStatic("minmax", settled=None, least_db=None, pays=False)
    step.run(result, context)
    if context.notes.get("remark"):
        return str(context.notes["remark"])
    layers = sum(n.op in ("Conv", "Gemm", "MatMul") for n in result.nodes)
    other = dict(runnable_feeds(graph, _COMPARING).arrays)
    view, literal, integers = _view(result, other), _run(result, other), _run(
        result, other, integers=True
    )  # fmt: skip
    steps = list(_steps(result, literal))
    return Agreement(
        layers,
        _apart(view, literal, steps),
        _apart(view, integers, steps),
        _apart(literal, integers, steps),
    )


def _view(graph: Graph, feeds: Mapping[str, np.ndarray]) -> Arrays:
    inputs = [to_tensor(feeds[name]) for name in graph.inputs]
    with trainable(graph.clone()) as module, torch.no_grad():
        made = module.eval()(*inputs)
    return [to_array(value) for value in (made if isinstance(made, list | tuple) else [made])]


def _run(graph: Graph, feeds: Mapping[str, np.ndarray], *, integers: bool = False) -> Arrays:
    with Session.open(graph, optimize="all" if integers else "none") as session:
        return session.run(feeds)


def _steps(graph: Graph, outputs: Sequence[np.ndarray]) -> Iterator[float]:
    """The step of each output's grid; 1/255 of its range if it has none."""
    for name, array in zip(graph.outputs, outputs, strict=True):
        maker = graph.producer(name)
        on_grid = maker is not None and maker.op == "DequantizeLinear"
        scale = graph.constant(maker.inputs[1].name) if maker is not None and on_grid else None
        spread = float(np.ptp(array)) / 255 if array.size and array.dtype.kind == "f" else 1.0
        yield float(scale.max()) if scale is not None else spread or 1.0


def _apart(a: Arrays, b: Arrays, steps: Sequence[float]) -> tuple[float, float]:
    parts = [
        np.abs(x.astype(np.float64) - y).reshape(-1) / step
        for x, y, step in zip(a, b, steps, strict=True)
        if x.dtype.kind == "f"
    ]
    whole = np.concatenate([*parts, np.zeros(1)])
    return float(whole.max()), float(np.quantile(whole, 0.999))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each model as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--most-mb", type=float, default=30.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        "| network | layers | view - graph | view - integers | graph - integers | within a step |"
    )
    print("|---|---|---|---|---|---|")
    for path in options.models:
        if path.stat().st_size > options.most_mb * 1e6:
            continue
        try:
            found = check(go.load(path))
        except GraphoptError as error:
            found = f"{type(error).__name__}: {error}"
        print(_line(path.stem, found), flush=True)


def _line(name: str, found: Agreement | str) -> str:
    if isinstance(found, str):
        return f"| {name} | {found} |"
    pairs = (found.view_and_graph, found.view_and_integers, found.graph_and_integers)
    cells = [f"{largest:.2f} ({most:.2f})" for largest, most in pairs]
    return f"| {name} | {found.layers} | {' | '.join(cells)} | {'yes' if found.holds else 'no'} |"


if __name__ == "__main__":
    main()
