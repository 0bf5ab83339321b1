"""Run models in ONNX Runtime, compare what they give and how long they take."""

from __future__ import annotations

from graphopt.runtime.benchmark import NOISE_FLOOR, BenchPlan, BenchResult, Latency, bench
from graphopt.runtime.comparison import Comparison, Difference, compare
from graphopt.runtime.drawing import Draw
from graphopt.runtime.feeds import Feeds, example_feeds, random_feeds, runnable_feeds
from graphopt.runtime.memory import peak_memory_mb
from graphopt.runtime.observing import observe
from graphopt.runtime.profiling import Kernel, kernels
from graphopt.runtime.session import Model, Optimize, Port, Session

__all__ = [
    "NOISE_FLOOR",
    "BenchPlan",
    "BenchResult",
    "Comparison",
    "Difference",
    "Draw",
    "Feeds",
    "Kernel",
    "Latency",
    "Model",
    "Optimize",
    "Port",
    "Session",
    "bench",
    "compare",
    "example_feeds",
    "kernels",
    "observe",
    "peak_memory_mb",
    "random_feeds",
    "runnable_feeds",
]
