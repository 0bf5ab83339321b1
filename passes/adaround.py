"""Round the stored weights of each layer anew, so that it gives what it gave in the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Note, Pass, Promise
from graphopt.quantize.adaround import Manner, round_anew
from graphopt.quantize.upgrading import require_opset

__all__ = ["AdaRound"]

_INT4_OPSET = 21


@dataclass(frozen=True)
class AdaRound(Pass):
    """Round the stored weights of each layer anew, so that it gives what it gave in the original.

    For graphs whose weights are stored as integers (after quantize-static or quantize-weights);
    `bits` is how many they have afterwards, 2 to 8. Four bits are `packed` two to a byte, which
    ONNX Runtime unpacks on every run; otherwise they take a byte and are as fast as 8.

    Layer by layer, over `samples` calibration inputs that come through the layers rounded before:
    weights are solved for and rounded column by column (Frantar et al. 2022), then which way each
    one goes is learned in `steps` steps of Adam on `batch` rows (Nagel et al. 2020; 0: not at
    all), behind the layer's activation; the better of the two is kept. `rate` is Adam's,
    `sharpness` weighs the regulariser, `damping` is part of the mean square input.
    """

    name: ClassVar[str] = "adaround"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    bits: int = 4
    packed: bool = True
    samples: int = 512
    steps: int = 1000
    batch: int = 512
    rate: float = 0.01
    sharpness: float = 0.1
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise RecipeError(f"{self.name}: bits must be from 2 to 8, got {self.bits}")
        for key, number in (("samples", self.samples), ("batch", self.batch)):
            if number < 1:
                raise RecipeError(f"{self.name}: {key} must be at least 1, got {number}")
        if self.steps < 0:
            raise RecipeError(f"{self.name}: steps must not be negative, got {self.steps}")
        for key, value in (("rate", self.rate), ("damping", self.damping)):
            if not value > 0:
                raise RecipeError(f"{self.name}: {key} must be above 0, got {value}")
        if self.sharpness < 0:
            raise RecipeError(f"{self.name}: sharpness must not be negative, got {self.sharpness}")

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        if self.bits == 4 and self.packed:
            require_opset(graph, _INT4_OPSET, "4-bit weights")
        manner = Manner(
            self.bits, self.packed, self.steps, self.batch, self.rate, self.sharpness,
            self.damping, context.seed, context.threads, context.device,
        )  # fmt: skip
        found = round_anew(
            graph,
            context.original,
            inputs.take(self.samples),
            manner,
            progress=lambda part: context.progress("rounding", part),
        )
        context.notes["errors"] = {
            name: {"nearest": before, "now": after}
            for name, (before, after) in found.errors.items()
        }
        context.notes["left_alone"] = dict[str, Note](found.left_alone)
