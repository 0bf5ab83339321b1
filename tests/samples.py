"""Small passes and models that the tests of the engine run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from graphopt.errors import UnsupportedOp
from graphopt.ir import Edit, Graph
from graphopt.passbase import Context, Need, Pass, Promise
from tests.asserting import parse

__all__ = [
    "Break",
    "Crash",
    "Damage",
    "DropIdentity",
    "GiveUp",
    "Greedy",
    "Scale",
    "convnet",
]


def convnet() -> onnx.ModelProto:
    """Conv, Identity, Relu, pooling and a classifier of 10 classes; batch N."""
    return parse(
        """convnet (float[N,3,8,8] x) => (float[N,10] y)
        <float[8,3,3,3] w, float[8] b, float[8,10] v> {
            a = Conv<pads=[1,1,1,1]>(x, w, b)
            i = Identity(a)
            r = Relu(i)
            p = GlobalAveragePool(r)
            f = Flatten(p)
            y = MatMul(f, v)
        }"""
    )


def _drop(graph: Graph, op: str) -> None:
    for node in list(graph.nodes):
        if node.op == op and graph.can_replace(node.outputs[0].name, node.inputs[0].name):
            graph.apply(Edit(remove=(node,), replace={node.outputs[0].name: node.inputs[0].name}))


@dataclass(frozen=True)
class DropIdentity(Pass):
    """Remove Identity nodes."""

    name: ClassVar[str] = "drop-identity"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        _drop(graph, "Identity")


@dataclass(frozen=True)
class Damage(Pass):
    """Claim to be exact and remove the activation."""

    name: ClassVar[str] = "damage"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        _drop(graph, "Relu")


@dataclass(frozen=True)
class Break(Pass):
    """Claim to be exact and leave a Conv with an attribute it does not have."""

    name: ClassVar[str] = "break"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        graph.set_attribute(graph.nodes[0], "no_such_attribute", 1)


@dataclass(frozen=True)
class Crash(Pass):
    """Fail in a way nobody foresaw."""

    name: ClassVar[str] = "crash"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        raise ZeroDivisionError("planned")


@dataclass(frozen=True)
class GiveUp(Pass):
    """Meet an operator it does not know."""

    name: ClassVar[str] = "give-up"
    promise: ClassVar[Promise] = Promise.LOSSY

    def run(self, graph: Graph, context: Context) -> None:
        raise UnsupportedOp("give-up: no row for 'Conv'")


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply every weight of the first Conv: a loss that a metric can see."""

    name: ClassVar[str] = "scale"
    promise: ClassVar[Promise] = Promise.LOSSY

    factor: float = 0.5

    def run(self, graph: Graph, context: Context) -> None:
        weight = graph.nodes[0].inputs[1].name
        array = graph.constant(weight)
        assert array is not None, "the first Conv has constant weights"
        graph.set_constant(weight, np.multiply(array, self.factor, dtype=np.float32))


@dataclass(frozen=True)
class Greedy(Pass):
    """Need data and note how much it was given."""

    name: ClassVar[str] = "greedy"
    promise: ClassVar[Promise] = Promise.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})

    sizes: Sequence[int] = ()

    def run(self, graph: Graph, context: Context) -> None:
        assert context.calibration is not None, "the manager checks needs"
        context.notes["seen"] = len(context.calibration)
