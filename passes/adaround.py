"""Round the stored weights of each layer anew, so that it gives what it gave in the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.passbase import Context, Need, Pass, Promise
from graphopt.quantize.adaround import round_anew
from graphopt.quantize.layer_rounding import Manner
from graphopt.quantize.upgrading import require_opset

__all__ = ["AdaRound"]

_INT4_OPSET = 21


@dataclass(frozen=True)
class AdaRound(Pass):
    """Round the stored weights of each layer anew, so that it gives what it gave in the original.

    For graphs whose weights are stored as integers (after quantize-static or quantize-weights);
    `bits` is how many they have afterwards, 2 to 8, and `end_bits`, if given, how many those of the
    first and the last layer. Four bits are `packed` two to a byte, which ONNX Runtime unpacks on
    every run; otherwise they take a byte and are as fast as 8. Layers that are portable, as
    `quantize-static{portable=true}` makes them, get 7 instead of 8, and stay so.

    Layer by layer, over `samples` calibration inputs that come through the layers rounded before:
    weights are solved for, rounded column by column (Frantar et al. 2022), and then changed one
    at a time, scales too, until no change makes the layer's error smaller. `damping`, a part of
    the mean square input, draws to the old weights what is solved for; more of it is tried on
    inputs that are held out. From there it can be learned which way each weight goes, behind the
    layer's activation, in `steps` steps of Adam on `batch` rows (Nagel et al. 2020), and for all
    layers of a block together, by what it gives, in `block_steps` (Li et al. 2021); blocks have
    one entrance and one exit, as residual ones do. The better codes are kept, by the calibration
    inputs. `rate` is Adam's, `sharpness` weighs the regulariser.
    """

    name: ClassVar[str] = "adaround"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    bits: int = 4
    end_bits: int | None = None
    packed: bool = True
    samples: int = 512
    steps: int = 1000
    block_steps: int = 0
    batch: int = 512
    rate: float = 0.01
    sharpness: float = 0.1
    damping: float = 0.01

    def __post_init__(self) -> None:
        for key, bits in (("bits", self.bits), ("end_bits", self.end_bits)):
            if bits is not None and not 2 <= bits <= 8:
                raise RecipeError(f"{self.name}: {key} must be from 2 to 8, got {bits}")
        for key, number in (("samples", self.samples), ("batch", self.batch)):
            if number < 1:
                raise RecipeError(f"{self.name}: {key} must be at least 1, got {number}")
        for key, number in (("steps", self.steps), ("block_steps", self.block_steps)):
            if number < 0:
                raise RecipeError(f"{self.name}: {key} must not be negative, got {number}")
        for key, value in (("rate", self.rate), ("damping", self.damping)):
            if not value > 0:
                raise RecipeError(f"{self.name}: {key} must be above 0, got {value}")
        if self.sharpness < 0:
            raise RecipeError(f"{self.name}: sharpness must not be negative, got {self.sharpness}")

    def run(self, graph: Graph, context: Context) -> None:
        inputs = context.inputs(self)
        if 4 in (self.bits, self.end_bits) and self.packed:
            require_opset(graph, _INT4_OPSET, "4-bit weights")
        manner = Manner(
            bits=self.bits,
            end_bits=self.end_bits,
            packed=self.packed,
            steps=self.steps,
            block_steps=self.block_steps,
            batch=self.batch,
            rate=self.rate,
            sharpness=self.sharpness,
            damping=self.damping,
            seed=context.seed,
            threads=context.threads,
            device=context.device,
        )
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
        context.notes["blocks"] = {
            name: {"layers": before, "now": after} for name, (before, after) in found.blocks.items()
        }
        context.left_alone(found.left_alone)
