"""Let the weights of a layer share few values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import RecipeError
from graphopt.ir import Array, Graph
from graphopt.passbase import Context, Pass, Promise
from graphopt.sparse import Codebook, choose_weights, fit_codebook, keep_weights

__all__ = ["ShareWeights"]

_MOST_BITS = 12


@dataclass(frozen=True)
class ShareWeights(Pass):
    """Let the weights of a layer share few values: 2^bits of them, found by k-means.

    Zero stays zero and is a value of its own; the others start evenly spread between the least and
    the largest weight, which keeps the large ones (Han et al. 2016). Layers have `bits`,
    convolutions `conv_bits` if that is given; with `error`, each layer has the fewest bits (from 1
    on) that take at most this part of the energy of its weights, and no more than `bits`.
    `weights` are patterns of names; with "!" they are left alone.

    A later `finetune` or `distill` trains the values that are shared: the gradient of a value is
    the sum over its weights. The file is not smaller by itself: `graphopt pack` stores codes.
    """

    name: ClassVar[str] = "share-weights"
    promise: ClassVar[Promise] = Promise.LOSSY
    bits: int = 5
    conv_bits: int | None = None
    error: float | None = None
    weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, bits in (("bits", self.bits), ("conv_bits", self.conv_bits)):
            if bits is not None and not 1 <= bits <= _MOST_BITS:
                raise RecipeError(f"{self.name}: {key} must be 1 to {_MOST_BITS}, got {bits}")
        if self.error is not None and not 0 < self.error < 1:
            raise RecipeError(f"{self.name}: error must be above 0 and below 1, got {self.error}")

    def run(self, graph: Graph, context: Context) -> None:
        chosen, left_alone = choose_weights(graph, self.weights, self.name)
        books = self._books(graph, chosen)
        for name, book in books.items():
            graph.set_constant(name, book.weight())
        keep_weights(graph, shared=books)
        context.notes["layers"] = {
            name: {"values": len(book.values), "error": book.error} for name, book in books.items()
        }
        small = {n: "it is smaller than its codebook" for n in chosen if n not in books}
        context.left_alone({**left_alone, **small})

    def _books(self, graph: Graph, chosen: Mapping[str, Array]) -> dict[str, Codebook]:
        books = {}
        for name, weight in chosen.items():
            convolved = graph.consumers(name)[0].op in ("Conv", "ConvTranspose")
            most = self.conv_bits if self.conv_bits and convolved else self.bits
            if 2**most < weight.size:
                books[name] = self._book(weight, most)
        return books

    def _book(self, weight: Array, most: int) -> Codebook:
        if self.error is None:
            return fit_codebook(weight, most)
        for bits in range(1, most):
            book = fit_codebook(weight, bits)
            if book.error <= self.error:
                return book
        return fit_codebook(weight, most)
