"""Judge one optimized ONNX file against its original: interface, outputs, size, latency.

Run by peers.py in a process of its own, so that a crash in ONNX Runtime is one failed row:
`python models/peer_check.py ORIGINAL OPTIMIZED [--latency]` prints one JSON object, and without
OPTIMIZED it describes the original.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    RuntimeException,
)
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Unimplemented

REFUSALS = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, Unimplemented, RuntimeException)

Feed = dict[str, np.ndarray]

# Sizes come in pairs: for the first draw, of one sample, and for the second, of two.
IMAGE_SIDE = (224, 160)
SEQUENCE_LENGTH = (32, 20)
TOKENS = 10  # integer inputs are drawn below this: valid in every vocabulary

# (file, input, shapes without the batch axis): inputs for which the general rules are wrong.
SHAPES: tuple[tuple[str, str, tuple[tuple[int, ...], tuple[int, ...]]], ...] = (
    ("*ocr*_cls_*", "x", ((3, 48, 192), (3, 48, 160))),
    ("*ocr*_rec_*", "x", ((3, 48, 320), (3, 48, 160))),
    ("*ocr*_det_*", "x", ((3, 320, 320), (3, 192, 256))),
    ("*silero_vad*", "input", ((512,), (256,))),
)
VALUES: Mapping[str, tuple[int, int]] = {"sr": (16000, 8000)}

DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}

ROUNDS = 4  # session pairs: which of two equal sessions is faster depends on their memory
BLOCK_SECONDS = 0.004
ROUND_SECONDS = 1.5


@dataclass(frozen=True)
class Original:
    """A model's operators, and how far its outputs move with the input, over their range.

    A network with random weights can forget its input: where `response` is near float rounding,
    equal outputs say little about anything but the last layers.
    """

    nodes: int
    response: float


@dataclass(frozen=True)
class Verdict:
    """What the check found; `failure` means the file cannot run, `mismatch` that it differs."""

    nodes: int
    max_diff: float | None = None
    failure: str = ""
    mismatch: str = ""
    latency: tuple[float, float, float] | None = None


def count_nodes(path: Path) -> int:
    """Count operators, Constant nodes aside; bodies of subgraphs and model functions included."""
    model = onnx.load(path, load_external_data=False)
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    return sum(_count(body) for body in bodies)


def _count(nodes: Iterable[onnx.NodeProto]) -> int:
    return sum((node.op_type != "Constant") + sum(map(_count, _bodies(node))) for node in nodes)


def _bodies(node: onnx.NodeProto) -> Iterator[Sequence[onnx.NodeProto]]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g.node
        yield from (graph.node for graph in attribute.graphs)


def load(path: Path, level: ort.GraphOptimizationLevel, threads: int = 0) -> ort.InferenceSession:
    """Open a model at the given optimization level; `threads` 0 is the runtime's own choice."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def draw(session: ort.InferenceSession, file: str, turn: int) -> Feed:
    """Draw random inputs, seeded by the file's name and the turn: 0 one sample, 1 two samples."""
    rng = np.random.default_rng([zlib.crc32(file.encode()), turn])
    batch_symbols = {arg.shape[0] for arg in session.get_inputs() if arg.shape}
    feed: Feed = {}
    for arg in session.get_inputs():
        shape = tuple(
            _size(size, turn, batch=axis == 0 or size in batch_symbols, image=len(arg.shape) == 4)
            for axis, size in enumerate(arg.shape)
        )
        for pattern, name, tails in SHAPES:
            if fnmatch(file, pattern) and arg.name == name:
                shape = (shape[0], *tails[turn])
        feed[arg.name] = _values(rng, arg.name, turn, (shape, DTYPES[arg.type]))
    return feed


def _size(size: int | str | None, turn: int, *, batch: bool, image: bool) -> int:
    if isinstance(size, int) and size > 0:
        return size
    if batch:
        return turn + 1
    return (IMAGE_SIDE if image else SEQUENCE_LENGTH)[turn]


def _values(
    rng: np.random.Generator,
    name: str,
    turn: int,
    spec: tuple[tuple[int, ...], type[np.generic]],
) -> np.ndarray:
    shape, dtype = spec
    if name in VALUES:
        return np.full(shape, VALUES[name][turn], dtype)
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    if dtype is np.bool_:
        return rng.random(shape) < 0.5
    return rng.integers(1, TOKENS, shape).astype(dtype)


def interface(session: ort.InferenceSession) -> list[tuple[str, str]]:
    """List names and types of inputs and outputs in order."""
    return [(arg.name, arg.type) for arg in (*session.get_inputs(), *session.get_outputs())]


def difference(name: str, expected: np.ndarray, found: np.ndarray) -> float | str:
    """Give the largest absolute difference, or say why there is none."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        was, now = f"{expected.dtype}{expected.shape}", f"{found.dtype}{found.shape}"
        return f"output '{name}' was {was}, is {now}"
    wide, other = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(finite, np.isfinite(other)):
        return f"output '{name}' is not finite in other places"
    return float(np.abs(wide - other)[finite].max(initial=0.0))


def span(runs: Sequence[np.ndarray]) -> float:
    """Give the range of an output over all its runs; of a constant one, its size."""
    values = np.concatenate([run.astype(np.float64).ravel() for run in runs])
    values = values[np.isfinite(values)]
    if not values.size:
        return 1.0
    return float(np.ptp(values)) or float(np.abs(values).max()) or 1.0


def compare(original: Path, optimized: Path) -> tuple[float, str]:
    """Give the largest difference, over the output's range, of both files run unoptimized."""
    reference = load(original, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    candidate = load(optimized, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    if interface(reference) != interface(candidate):
        lost = [item for item in interface(reference) if item not in interface(candidate)]
        return math.inf, f"names, types or order of inputs and outputs changed: {lost}"
    runs = list(_reference_runs(reference, original.name))
    found = [candidate.run(None, feed) for feed, _ in runs]
    worst = 0.0
    for index, output in enumerate(reference.get_outputs()):
        expected = [outputs[index] for _, outputs in runs]
        for was, now in zip(expected, (outputs[index] for outputs in found), strict=True):
            moved = difference(output.name, was, now)
            if isinstance(moved, str):
                return math.inf, moved
            worst = max(worst, moved / span(expected))
    return worst, ""


def _reference_runs(
    reference: ort.InferenceSession, file: str
) -> Iterator[tuple[Feed, list[np.ndarray]]]:
    """Run one sample and, where the original allows it, two of another size."""
    first = draw(reference, file, 0)
    yield first, reference.run(None, first)
    second = draw(reference, file, 1)
    try:
        expected = reference.run(None, second)
    except REFUSALS:
        return  # the original itself takes no such input
    yield second, expected


def latency_ratio(original: Path, optimized: Path) -> tuple[float, float, float]:
    """Measure optimized / original: median and quartiles of paired blocks, one thread.

    ONNX Runtime optimizes both as it does by default. What counts is CPU time, which other load
    on the machine stretches less than the clock. Blocks of the two alternate and swap places each
    time, so that what is left of that hits both alike; several session pairs are opened, in
    alternating order, since memory placement alone can part two equal sessions.
    """
    ratios: list[float] = []
    for turn in range(ROUNDS):
        order = (original, optimized) if turn % 2 == 0 else (optimized, original)
        opened = {path: load(path, ort.GraphOptimizationLevel.ORT_ENABLE_ALL, 1) for path in order}
        feed = draw(opened[original], original.name, 0)
        pair = (opened[original], opened[optimized])
        warm_up = max(_block(session, feed, 1) for session in pair)
        single = min(_block(pair[0], feed, 1) for _ in range(3)) if warm_up < 1 else warm_up
        ratios += _paired(pair, feed, max(1, round(BLOCK_SECONDS / single)))
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return float(middle), float(low), float(high)


def _paired(
    pair: tuple[ort.InferenceSession, ort.InferenceSession], feed: Feed, repeats: int
) -> list[float]:
    ratios: list[float] = []
    end = time.perf_counter() + ROUND_SECONDS
    while len(ratios) < 4 or time.perf_counter() < end:
        turn = len(ratios) % 2
        first = _block(pair[turn], feed, repeats)
        second = _block(pair[1 - turn], feed, repeats)
        ratios.append(first / second if turn else second / first)
    return ratios


def _block(session: ort.InferenceSession, feed: Feed, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        session.run(None, feed)
    return (time.process_time() - start) / repeats


def describe(path: Path) -> Original:
    """Count operators and compare the outputs of two inputs, one the other's negative."""
    session = load(path, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    feed = draw(session, path.name, 0)
    moved = {
        name: -value if np.issubdtype(value.dtype, np.floating) else np.roll(value, 1)
        for name, value in feed.items()
    }
    responses: list[float] = []
    for one, other in zip(session.run(None, feed), session.run(None, moved), strict=True):
        move = difference("", one, other)
        responses.append(move / span((one, other)) if isinstance(move, float) else 1.0)
    return Original(count_nodes(path), min(responses))


def judge(original: Path, optimized: Path, *, latency: bool) -> Verdict:
    """Check one file; whatever ONNX Runtime refuses becomes the verdict's failure."""
    nodes = count_nodes(optimized)
    try:
        worst, mismatch = compare(original, optimized)
        ratio = latency_ratio(original, optimized) if latency else None
    except REFUSALS as error:
        return Verdict(nodes, failure=" ".join(str(error).split())[:300])
    max_diff = worst if math.isfinite(worst) else None
    return Verdict(nodes, max_diff, mismatch=mismatch, latency=ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("optimized", type=Path, nargs="?")
    parser.add_argument("--latency", action="store_true")
    options = parser.parse_args()
    if options.optimized is None:
        json.dump(asdict(describe(options.original)), sys.stdout)
    else:
        verdict = judge(options.original, options.optimized, latency=options.latency)
        json.dump(asdict(verdict), sys.stdout)


if __name__ == "__main__":
    main()
