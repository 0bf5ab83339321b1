"""Every way to factorize: the layers are the kernel, full rank is exact, the error falls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import tensorly
import tensorly.decomposition
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.cost import cost
from graphopt.factorize import METHODS, Kernel, Ranks, kernel_of, sizes_of
from graphopt.factorize.kernels import Doubles
from graphopt.factorize.replacing import Replacement, replacement
from graphopt.factorize.sampling import Sample
from graphopt.ir import Graph
from tests.asserting import parse, run_model

NESTED = ("svd", "channel", "spatial", "tucker")
"""Methods whose components for a rank are among those for a higher one."""


@dataclass(frozen=True)
class Case:
    """A model of one layer, and the shape of its input."""

    text: str
    shape: tuple[int, ...]
    seed: int

    def graph(self) -> Graph:
        return Graph.load(parse(self.text, seed=self.seed))


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """A Conv or ConvTranspose of one to three axes, with every attribute drawn."""
    rank = draw(st.integers(1, 3))
    transposed = draw(st.booleans())

    def numbers(least: int, most: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(least, most), min_size=count, max_size=count))

    groups, inner, outer = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    taps, dilations = numbers(1, 3), numbers(1, 2)
    attrs = [
        f"kernel_shape={taps}",
        f"strides={numbers(1, 2)}",
        f"dilations={dilations}",
        f"group={groups}",
    ]
    if draw(st.booleans()):
        attrs.append(f"pads={numbers(0, 1 if transposed else 2, 2 * rank)}")
    elif not transposed and max(dilations) == 1:  # ONNX Runtime takes no others
        attrs.append(f'auto_pad="{draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))}"')
    ends = (inner * groups, outer) if transposed else (outer * groups, inner)
    spatial = [d * (k - 1) + 3 for k, d in zip(taps, dilations, strict=True)]
    x = ",".join(map(str, (2, inner * groups, *spatial)))
    y = ",".join("nabcde"[: rank + 2])
    bias = f", float[{outer * groups}] b" if draw(st.booleans()) else ""
    op = "ConvTranspose" if transposed else "Conv"
    text = f"""layer (float[{x}] x) => (float[{y}] y)
        <float[{",".join(map(str, (*ends, *taps)))}] w{bias}> {{
            y = {op}<{", ".join(attrs)}>(x, w{", b" if bias else ""})
        }}"""
    return Case(text, (2, inner * groups, *spatial), draw(st.integers(0, 99)))


@st.composite
def products(draw: st.DrawFn) -> Case:
    """A Gemm or a MatMul, of a batch or of sequences."""
    inner, outer = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    seed = draw(st.integers(0, 99))
    if draw(st.booleans()):
        text = f"""layer (float[2,3,{inner}] x) => (float[a,b,c] y) <float[{inner},{outer}] w> {{
            y = MatMul(x, w)
        }}"""
        return Case(text, (2, 3, inner), seed)
    turned = draw(st.integers(0, 1))
    ends = (outer, inner) if turned else (inner, outer)
    text = f"""layer (float[3,{inner}] x) => (float[a,b] y)
        <float[{ends[0]},{ends[1]}] w, float[{outer}] b> {{
            y = Gemm<transB={turned}, alpha=0.5, beta=2.0>(x, w, b)
        }}"""
    return Case(text, (3, inner), seed)


def layers() -> st.SearchStrategy[Case]:
    return st.one_of(convolutions(), products())


def kernel_in(graph: Graph) -> Kernel:
    kernel = kernel_of(graph, graph.nodes[0])
    assert isinstance(kernel, Kernel), kernel
    return kernel


def parts_of(full: Ranks, share: float) -> Ranks:
    return tuple(max(1, round(rank * share)) for rank in full)


def sample_for(kernel: Kernel, seed: int) -> Sample | None:
    """Rows of which some columns are alike; None every other time."""
    rng = np.random.default_rng(seed)
    if seed % 2 or kernel.node.op == "ConvTranspose":
        return None
    columns = kernel.inputs * math.prod(kernel.taps)
    mixing = rng.standard_normal((kernel.groups, columns, columns)) ** 3
    rows = rng.standard_normal((kernel.groups, 64, columns)) @ mixing
    mean = rows.mean(axis=1)
    return Sample((rows - mean[:, np.newaxis]).astype(np.float32), mean)


def error(kernel: Kernel, made: Doubles, sample: Sample | None) -> float:
    if sample is not None:
        return sample.judge(kernel.tensor)(made)
    return float(np.sum((kernel.tensor - made) ** 2) / np.sum(kernel.tensor**2))


@settings(max_examples=25, deadline=None)
@given(case=layers(), share=st.floats(0.1, 1.0))
def test_chain_is_the_kernel_that_it_says(case: Case, share: float) -> None:
    graph = case.graph()
    x = np.random.default_rng(1).standard_normal(case.shape).astype(np.float32)
    wanted = run_model(graph, {"x": x})[0]
    for method in METHODS.values():
        kernel = kernel_in(graph)
        if not method.fits(kernel):
            continue
        sample = sample_for(kernel, case.seed)
        for full in (False, True):
            ranks = method.full(kernel)
            if not full:
                ranks = method.bound(kernel, parts_of(ranks, share))
            chain = method.decompose(kernel, sample).build(ranks, 3)
            sizes = [step.weight.size for step in chain.steps]
            assert sizes == [part.weights for part in method.parts(kernel, ranks)]
            made, same = graph.clone(), graph.clone()
            made.apply(replacement(made, kernel_in(made), Replacement.of(kernel, chain, None))[0])
            step = kernel.step(chain.kernel / kernel.layer.factor)
            same.set_constant("w", step.weight.astype(np.float32))
            got = run_model(made, {"x": x})[0]
            scale = np.abs(wanted).max() + 1e-3
            np.testing.assert_allclose(got, run_model(same, {"x": x})[0], atol=1e-4 * scale)
            if full:
                np.testing.assert_allclose(got, wanted, atol=1e-4 * scale)
            given_sizes = sizes_of(graph, {"x": x})["y"]
            assert kernel.macs(method.parts(kernel, ranks), given_sizes) == cost(made).macs
            assert kernel.macs(kernel.parts, given_sizes) == cost(graph).macs


@settings(max_examples=25, deadline=None)
@given(case=layers())
def test_error_falls_with_the_rank_to_nothing(case: Case) -> None:
    kernel = kernel_in(case.graph())
    sample = sample_for(kernel, case.seed)
    for name in NESTED:
        method = METHODS[name]
        if not method.fits(kernel):
            continue
        full = method.full(kernel)
        decomposition = method.decompose(kernel, None if name == "tucker" else sample)
        judged = None if name == "tucker" else sample
        shares = np.linspace(0.0, 1.0, 7)
        errors = [
            error(kernel, decomposition.build(parts_of(full, share), 0).kernel, judged)
            for share in shares
        ]
        if name != "spatial" or judged is None:  # its metric leaves out what columns share
            assert all(b <= a + 1e-6 for a, b in pairwise(errors)), errors
        assert errors[-1] < 1e-6


@settings(max_examples=12, deadline=None)
@given(case=convolutions())
def test_refinement_never_makes_the_error_larger(case: Case) -> None:
    kernel = kernel_in(case.graph())
    for name in ("tucker", "cp"):
        method = METHODS[name]
        if not method.fits(kernel):
            continue
        decomposition = method.decompose(kernel, None)
        ranks = method.bound(kernel, parts_of(method.full(kernel), 0.4))
        plain, refined = (decomposition.build(ranks, rounds).kernel for rounds in (0, 8))
        assert error(kernel, refined, None) <= error(kernel, plain, None) + 1e-6


@settings(max_examples=25, deadline=None)
@given(case=layers(), share=st.floats(0.1, 1.0))
def test_error_that_is_known_is_that_of_what_is_built(case: Case, share: float) -> None:
    kernel = kernel_in(case.graph())
    for name, method in METHODS.items():
        for sample in (None, sample_for(kernel, case.seed)):
            if not method.fits(kernel):
                continue
            decomposition = method.decompose(kernel, sample)
            if decomposition.lost is None:
                continue
            ranks = parts_of(method.full(kernel), share)
            built = error(kernel, decomposition.build(ranks, 3).kernel, sample)
            slack = 1e-9 if sample is None else 1e-2  # of its ridge
            assert abs(decomposition.lost(ranks) - built) < slack, (name, ranks)


def test_tucker_and_cp_are_as_near_as_those_of_another_implementation() -> None:
    text = """layer (float[1,24,8,8] x) => (float[1,32,6,6] y) <float[32,24,3,3] w> {
        y = Conv<kernel_shape=[3,3]>(x, w)
    }"""
    kernel = kernel_in(Graph.load(parse(text)))
    tensor = kernel.tensor[0]
    core, bases = tensorly.decomposition.partial_tucker(
        tensor, rank=[12, 9], modes=[0, 1], n_iter_max=50
    )[0]
    other = np.einsum("rs...,or,is->oi...", core, *bases)
    made = METHODS["tucker"].decompose(kernel, None).build((12, 9), 50).kernel
    assert error(kernel, made, None) <= error(kernel, other[np.newaxis], None) + 1e-3
    start = METHODS["cp"].decompose(kernel, None).build((40,), 0).kernel
    made = METHODS["cp"].decompose(kernel, None).build((40,), 30).kernel
    parts = tensorly.decomposition.parafac(
        tensor, rank=40, n_iter_max=30, init="random", random_state=0
    )
    other = tensorly.cp_to_tensor(parts)[np.newaxis]
    assert error(kernel, made, None) < 0.9 * error(kernel, start, None)
    assert error(kernel, made, None) <= error(kernel, other, None) + 0.02


def test_cp_finds_what_is_a_sum_of_products() -> None:
    rng = np.random.default_rng(0)
    sizes = (12, 10, 3, 3)
    factors = [rng.standard_normal((size, 4)) for size in sizes]
    weight = np.einsum("ar,br,cr,dr->abcd", *factors).astype(np.float32)
    graph = Graph.load(
        parse(
            """layer (float[1,10,8,8] x) => (float[a,b,c,d] y) <float[12,10,3,3] w> {
                y = Conv<kernel_shape=[3,3]>(x, w)
            }"""
        )
    )
    graph.set_constant("w", weight)
    kernel = kernel_in(graph)
    chain = METHODS["cp"].decompose(kernel, None).build((4,), 200)
    assert error(kernel, chain.kernel, None) < 1e-3
    norms = [np.linalg.norm(step.weight) for step in chain.steps]
    assert max(norms) < 10 * min(norms), "no factor blows up"


def test_activations_decide_where_they_are_few() -> None:
    """Inputs that live in three dimensions leave nothing of the error at rank 3."""
    graph = Graph.load(
        parse(
            """layer (float[9,16] x) => (float[a,b] y) <float[16,12] w, float[12] b> {
                y = Gemm(x, w, b)
            }"""
        )
    )
    kernel = kernel_in(graph)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1, 200, 3)) @ rng.standard_normal((3, 16)) + 5.0
    mean = rows.mean(axis=1)
    sample = Sample((rows - mean[:, np.newaxis]).astype(np.float32), mean)
    plain = METHODS["svd"].decompose(kernel, None).build((3,), 0)
    aware = METHODS["svd"].decompose(kernel, sample).build((3,), 0)
    assert sample.judge(kernel.tensor)(plain.kernel) > 0.1
    assert sample.judge(kernel.tensor)(aware.kernel) < 1e-3
    shift = sample.shift(kernel.tensor, aware.kernel)
    wanted = rows[0] @ kernel.tensor[0].T
    np.testing.assert_allclose(rows[0] @ aware.kernel[0].T + shift, wanted, atol=0.2)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{ t = MatMul(x, w) y = MatMul(t, w) }", "its weight is shared"),
        ("{ y = Gemm<transA=1>(x, w) }", "it transposes its input"),
    ],
)
def test_layers_that_are_left_alone(body: str, reason: str) -> None:
    assert refusal(f"layer (float[4,4] x) => (float[a,b] y) <float[4,4] w> {body}") == reason


def test_weights_that_are_no_matrix_or_no_numbers() -> None:
    text = "layer (float[4,4] x) => (float[a] y) <float[4] w> { y = MatMul(x, w) }"
    assert refusal(text) == "its weight is no matrix"
    text = "layer (float[4,64] x) => (float[a,b] y) <float[64,64] w> { y = MatMul(x, w) }"
    ones = np.broadcast_to(np.float32(1), (64, 64))
    assert refusal(text, ones) == "its weights are all equal"
    assert refusal(text, np.full((64, 64), np.nan, np.float32)) == "its weights are not finite"


def refusal(text: str, weight: npt.NDArray[np.float32] | None = None) -> str:
    graph = Graph.load(parse(text))
    if weight is not None:
        graph.set_constant("w", weight)
    found = kernel_of(graph, graph.nodes[0])
    assert isinstance(found, str)
    return found
