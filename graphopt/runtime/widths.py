"""Find out of how many channels at a time ONNX Runtime is fast on this machine, by timing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.runtime.session import Session

__all__ = ["fast_multiple"]

_STEPS = (1, 4, 8, 16, 32)
_LAYERS = ((64, False), (64, True), (128, True))
"""Widths to step down from, of dense 3x3 convolutions or of pairs of depthwise and 1x1 ones."""
_SIDE, _DEPTH, _ROUNDS = 14, 3, 40
_WORTH = 0.5
"""The share of the work saved that must be saved in time, too, for a step to count."""

_Layers = tuple[int, bool]


def fast_multiple(progress: Callable[[float], None] = lambda fraction: None) -> int:
    """The smallest step between widths at which fewer channels take that much less time.

    Convolutions run in blocks of channels: a width between two multiples costs as much as the
    upper one, or more. Takes about half a second; 1 where no step pays.
    """
    steps = (0, *_STEPS)
    layers = {(width - step, alone) for width, alone in _LAYERS for step in steps}
    seconds = _seconds(sorted(layers), progress)
    for step in _STEPS:
        shares = [seconds[w - step, alone] / seconds[w, alone] for w, alone in _LAYERS]
        works = [((width - step) / width) ** 2 for width, _ in _LAYERS]
        if 1 - _mean(shares) >= _WORTH * (1 - _mean(works)):
            return step
    return 1


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _seconds(
    layers: Sequence[_Layers], progress: Callable[[float], None]
) -> Mapping[_Layers, float]:
    """The least processor time of a run of each, all in turn: other work slows all alike."""
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 4, _SIDE, _SIDE)).astype(np.float32)}
    best = dict.fromkeys(layers, math.inf)
    with ExitStack() as opened:
        runs = {
            (width, alone): opened.enter_context(Session.open(_network(width, alone=alone))).bind(
                feeds
            )
            for width, alone in layers
        }
        for round_ in range(_ROUNDS + 1):
            for key, run in runs.items():
                began = time.process_time()
                run()
                if round_:  # the first sets memory up
                    best[key] = min(best[key], max(time.process_time() - began, 1e-9))
            progress(round_ / _ROUNDS)
    return best


def _network(width: int, *, alone: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(source: str, *shape: int, group: int = 1) -> str:
        array = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{len(weights)}"))
        made = [f"c{len(nodes)}", f"r{len(nodes)}"]
        pads = [shape[-1] // 2] * 4
        inputs = [source, weights[-1].name]
        nodes.append(helper.make_node("Conv", inputs, made[:1], pads=pads, group=group))
        nodes.append(helper.make_node("Relu", made[:1], made[1:]))
        return made[1]

    x = conv("x", width, 4, 1, 1)
    for _ in range(_DEPTH):
        if alone:
            x = conv(conv(x, width, 1, 3, 3, group=width), width, width, 1, 1)
        else:
            x = conv(x, width, width, 3, 3)
    shape = [1, 4, _SIDE, _SIDE]
    graph = helper.make_graph(
        nodes,
        "widths",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, width, _SIDE, _SIDE])],
        weights,
    )
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
