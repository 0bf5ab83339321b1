"""Paired timing: who is faster, what is noise, how much memory; never how many milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.errors import RuntimeUnavailable
from graphopt.ir import Graph
from graphopt.runtime import BenchPlan, BenchResult, Latency, bench, peak_memory_mb
from graphopt.runtime.benchmark import _enough, _resampled

QUICK = BenchPlan(warmup=1, pairs=8, min_seconds=0.05, max_seconds=2)


def product(inner: int) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17]>'
        "g (float[N,8] x) => (float[N,8] y) { h = MatMul (x, A)  y = MatMul (h, B) }"
    )
    for name, shape in (("A", (8, inner)), ("B", (inner, 8))):
        weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


FEEDS = {"x": np.ones((64, 8), np.float32)}


def test_the_smaller_model_is_faster_either_way_round() -> None:
    big, small = Graph.load(product(20_000)), product(8).SerializeToString()
    found = bench(big, small, feeds=FEEDS, plan=QUICK)
    assert found.verdict == "faster"
    assert found.ratio is not None
    assert found.interval is not None
    assert found.interval[0] <= found.ratio <= found.interval[1] < 1
    assert found.pairs >= QUICK.pairs
    assert found.a.p10_ms <= found.a.median_ms <= found.a.p90_ms
    assert bench(small, big, feeds=FEEDS, plan=QUICK).verdict == "slower"


def test_one_model_alone() -> None:
    found = bench(product(8), feeds=FEEDS, plan=QUICK)
    assert found.a.median_ms > 0
    assert (found.b, found.ratio, found.verdict) == (None, None, "noise")


@pytest.mark.parametrize(
    ("ratio", "interval", "verdict"),
    [
        (0.9, (0.85, 0.95), "faster"),
        (0.9, (0.80, 1.01), "noise"),
        (0.995, (0.991, 0.998), "noise"),  # beyond doubt, but no more than two like sessions differ
        (1.1, (1.05, 1.15), "slower"),
        (1.1, (0.99, 1.15), "noise"),
    ],
)
def test_a_gain_inside_the_noise_is_called_noise(
    ratio: float, interval: tuple[float, float], verdict: str
) -> None:
    latency = Latency(1.0, 0.9, 1.1)
    assert BenchResult(latency, latency, ratio, interval, 50, 1).verdict == verdict


@pytest.mark.parametrize(
    ("pairs", "seconds", "enough"),
    [
        (50, 1.1, True),
        (48, 1.1, False),
        (50, 0.9, False),
        (6, 20.5, True),
        (4, 20.5, False),
    ],
)
def test_how_long_a_plan_takes(pairs: int, seconds: float, *, enough: bool) -> None:
    rounds = [np.ones((2, pairs // 2))] * 2
    assert _enough(rounds, seconds, BenchPlan()) == enough


def test_the_ratio_is_that_of_most_rounds_and_free_of_who_began() -> None:
    """One round in five is off by its memory, and who begins a pair is 10 % faster."""
    rng = np.random.default_rng(0)
    began = np.tile([1.1, 1 / 1.1], 50)
    rounds = [
        0.8 * began * (2 if index == 0 else 1) * rng.normal(1, 0.01, 100) for index in range(5)
    ]
    ratios = _resampled(rounds, rng)
    assert np.median(ratios) == pytest.approx(0.8, rel=0.01)
    assert np.percentile(ratios, 2.5) == pytest.approx(0.8, rel=0.02)


def test_a_model_that_does_not_run_is_named_before_it_is_timed() -> None:
    with pytest.raises(RuntimeUnavailable, match="cannot run"):
        bench(product(8), feeds={"x": np.ones((1, 9), np.float32)}, plan=QUICK)


def test_peak_memory_counts_the_weights_and_not_this_process(tmp_path: Path) -> None:
    ballast = np.ones(30_000_000)  # 240 MB here are none of the child's
    small = bench(product(8), feeds=FEEDS, plan=BenchPlan(pairs=2, min_seconds=0, memory=True))
    path = tmp_path / "large.onnx"
    onnx.save(product(1_000_000), path)  # 64 MB of weights
    large = peak_memory_mb(path, {"x": np.ones((1, 8), np.float32)})
    assert small.a.peak_memory_mb is not None
    assert large is not None
    assert small.a.peak_memory_mb < 40
    assert large > 64
    assert ballast.size
    with pytest.raises(RuntimeUnavailable, match=r"memory: .*cannot load"):
        peak_memory_mb(b"nonsense", FEEDS)
