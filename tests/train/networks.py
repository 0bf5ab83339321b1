"""Tiny networks, data and settings that the tests of training share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.train import Plan, Resources
from tests.asserting import parse

__all__ = ["ALONE", "QUICK", "disturbed", "images", "perceptron", "small", "vectors"]

ALONE = Resources(device="cpu", threads=1)

QUICK = Plan(
    epochs=4, batch=16, rate=0.05, precision="float32", layout="contiguous", augment=(), holdout=0.2
)

_PERCEPTRON = """perceptron (float[N,6] x) => (float[N,4] y)
<float[6,8] w0, float[8] b0, float[8,4] w1, float[4] b1> {
    a = Gemm(x, w0, b0)
    r = Relu(a)
    y = Gemm(r, w1, b1)
}"""

_SMALL = """small (float[N,3,8,8] x) => (float[N,5] y)
<float[4,3,3,3] w0, float[4] b0, float[6,4,3,3] w1, float[5,6] w2, float[5] b2> {
    c0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w0, b0)
    r0 = Relu(c0)
    c1 = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r0, w1)
    r1 = Relu(c1)
    p = GlobalAveragePool(r1)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w2, b2)
}"""


def perceptron(*, seed: int = 0) -> Graph:
    """Six numbers in, four class scores out."""
    return Graph.load(parse(_PERCEPTRON, seed=seed))


def small(*, seed: int = 0) -> Graph:
    """A convolutional network for images of 8 by 8 and five classes."""
    return Graph.load(parse(_SMALL, seed=seed))


def vectors(count: int = 80, *, seed: int = 1) -> Dataset:
    """Rows for the perceptron; the label says which of the first four numbers is largest."""
    x = np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)
    return Dataset.from_arrays({"x": x}, labels=x[:, :4].argmax(1))


def images(count: int = 80, *, seed: int = 1) -> Dataset:
    """Rows for the small network, without labels."""
    x = np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)
    return Dataset.from_arrays({"x": x})


def disturbed(graph: Graph, *, by: float = 0.3) -> Graph:
    """A copy whose weights are off."""
    rng = np.random.default_rng(3)
    other = graph.clone()
    for name, array in graph.constants().items():
        if array.dtype == np.float32:
            noise = by * rng.standard_normal(array.shape)
            other.set_constant(name, np.asarray(array, np.float32) + noise.astype(np.float32))
    return other


def for_seed(seed: int) -> Resources:
    """One CPU thread and another seed."""
    return replace(ALONE, seed=seed)
