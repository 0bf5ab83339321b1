"""Solve the layers behind removed channels anew, so that the original's sums are reproduced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.refit import Fitting, noted_traces, refit, traces_are_current, write_traces

__all__ = ["Refit"]


@dataclass(frozen=True)
class Refit(Fitting, Pass):
    """Solve the layers behind removed channels anew, so that the original's sums are reproduced.

    Layer by layer from the front: the inputs come from the cut network with all layers before
    solved, the targets are the original's outputs of the layer. Where a shortcut is added, the
    layer makes up for its error too. Weights and bias of Conv (grouped and depthwise too), Gemm
    and MatMul come from least squares over `samples` calibration inputs, without labels, drawn to
    the old weights by a ridge of `damping` times the mean square input. Where a ReLU or a clamp
    follows, `rounds` refinements fit what passes it. With `joint`, a layer that alone reads another
    one through activations or pools is refined together with it, in so many rounds of alternating
    least squares, none of which makes the error larger. The network must have the structure that
    remove-channels has left; it may have been trained since.
    """

    name: ClassVar[str] = "refit"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        if not traces_are_current(graph):
            raise RecipeError(
                f"{self.name}: the network was changed after its channels were removed, so its "
                "tensors may not be those of the original any more; put refit right behind "
                "remove-channels"
            )
        traces = noted_traces(graph)
        fit = refit(
            graph,
            context.original,
            traces,
            inputs.take(self.samples),
            self.settings(seed=context.seed, threads=context.threads),
            progress=lambda part: context.progress("refitting", part),
        )
        if traces:
            write_traces(graph, traces)  # biases may have been added
        context.notes["refitted"] = {
            name: {"before": before, "after": after} for name, (before, after) in fit.errors.items()
        }
        context.notes["joint"] = {
            name: {"before": before, "after": after}
            for name, (before, after) in fit.together.items()
        }
        context.left_alone(fit.left_alone)
