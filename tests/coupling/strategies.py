"""Random networks that use most ways in which channels are tied."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Builder", "networks"]


@dataclass
class Builder:
    """Writes a model node by node; tensors are (name, channels, side)."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        scale = np.sqrt(1.0 / max(1, int(np.prod(shape[1:]))))
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def positive(self, size: int) -> str:
        return self.constant(self.rng.uniform(0.5, 1.5, size).astype(np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, *inputs: str, outputs: int = 1, **attrs: object) -> str:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names))
        self.nodes[-1].attribute.extend(
            helper.make_attribute(key, value) for key, value in attrs.items()
        )
        return names[0]

    def model(
        self, inputs: dict[str, tuple[int | str, ...]], outputs: list[str], opset: int = 18
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            self.constants,
        )
        imports = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


@dataclass(frozen=True)
class Value:
    name: str
    channels: int
    side: int


_Draw = st.DrawFn


def _conv(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    out = draw(st.sampled_from([4, 6, 8]))
    groups = draw(st.sampled_from([g for g in (1, 1, 2) if x.channels % g == out % g == 0]))
    inputs = [x.name, b.weight(out, x.channels // groups, 3, 3)]
    inputs += [b.weight(out)] if draw(st.booleans()) else []
    return Value(b.node("Conv", *inputs, pads=[1] * 4, group=groups), out, x.side)


def _depthwise(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    times = draw(st.sampled_from([1, 1, 2]))
    out = x.channels * times
    if out > 16:
        return x
    name = b.node("Conv", x.name, b.weight(out, 1, 3, 3), pads=[1] * 4, group=x.channels)
    return Value(name, out, x.side)


def _batch_norm(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    c = x.channels
    name = b.node(
        "BatchNormalization", x.name, b.positive(c), b.weight(c), b.weight(c), b.positive(c)
    )
    return Value(name, c, x.side)


def _activation(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    op = draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish", "PRelu"]))
    if op == "PRelu":
        slope = b.constant(b.rng.uniform(0, 1, (x.channels, 1, 1)).astype(np.float32))
        return Value(b.node("PRelu", x.name, slope), x.channels, x.side)
    return Value(b.node(op, x.name), x.channels, x.side)


def _combine(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    alike = [v for v in live if (v.channels, v.side) == (x.channels, x.side)]
    other = alike[draw(st.integers(0, len(alike) - 1))]
    op = draw(st.sampled_from(["Add", "Mul", "Max"]))
    return Value(b.node(op, x.name, other.name), x.channels, x.side)


def _concat(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    alike = [v for v in live if v.side == x.side and v.channels + x.channels <= 16]
    if not alike:
        return x
    other = alike[draw(st.integers(0, len(alike) - 1))]
    return Value(b.node("Concat", x.name, other.name, axis=1), x.channels + other.channels, x.side)


def _part(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    half = x.channels // 2
    kind = draw(st.sampled_from(["Slice", "Split", "Gather"]))
    if kind == "Slice":
        ends = b.integers(half), b.integers(x.channels)
        return Value(b.node("Slice", x.name, *ends, b.integers(1)), x.channels - half, x.side)
    if kind == "Gather":
        picks = b.rng.permutation(x.channels)[:half]
        return Value(b.node("Gather", x.name, b.integers(*picks), axis=1), half, x.side)
    sizes = b.integers(half, x.channels - half)
    first = b.node("Split", x.name, sizes, outputs=2, axis=1)
    live.append(Value(first[:-1] + "1", x.channels - half, x.side))
    return Value(first, half, x.side)


def _shuffle(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    if x.channels % 2:
        return x
    wide = b.node("Reshape", x.name, b.integers(-1, 2, x.channels // 2, x.side, x.side))
    turned = b.node("Transpose", wide, perm=[0, 2, 1, 3, 4])
    shape = b.integers(0, x.channels, x.side, x.side)
    return Value(b.node("Reshape", turned, shape), x.channels, x.side)


def _excite(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    pooled = b.node("GlobalAveragePool", x.name)
    inner = b.node("Relu", b.node("Conv", pooled, b.weight(4, x.channels, 1, 1), b.weight(4)))
    gate = b.node("Sigmoid", b.node("Conv", inner, b.weight(x.channels, 4, 1, 1)))
    return Value(b.node("Mul", x.name, gate), x.channels, x.side)


def _pad(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    if x.channels > 12:
        return x
    name = b.node("Pad", x.name, b.integers(0, 1, 0, 0, 0, 2, 0, 0))
    return Value(name, x.channels + 3, x.side)


def _space(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    kind = draw(st.sampled_from(["pool", "up", "transposed", "to depth", "to space"]))
    if kind == "pool" and x.side > 1:
        name = b.node("MaxPool", x.name, kernel_shape=[2, 2], strides=[2, 2])
        return Value(name, x.channels, x.side // 2)
    if kind == "up" and x.side < 8:
        scales = b.constant(np.array([1, 1, 2, 2], np.float32))
        return Value(b.node("Resize", x.name, "", scales), x.channels, 2 * x.side)
    if kind == "transposed":
        name = b.node("ConvTranspose", x.name, b.weight(x.channels, 6, 1, 1), b.weight(6))
        return Value(name, 6, x.side)
    if kind == "to depth" and x.side % 2 == 0 and x.channels <= 4:
        name = b.node("SpaceToDepth", x.name, blocksize=2)
        return Value(name, 4 * x.channels, x.side // 2)
    if kind == "to space" and x.channels % 4 == 0 and x.channels > 4 and x.side < 8:
        mode = draw(st.sampled_from(["DCR", "CRD"]))
        name = b.node("DepthToSpace", x.name, blocksize=2, mode=mode)
        return Value(name, x.channels // 4, 2 * x.side)
    return x


def _last(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    """Channels last, a matrix product, and back."""
    rows = b.node("Transpose", x.name, perm=[0, 2, 3, 1])
    made = b.node("Add", b.node("MatMul", rows, b.weight(x.channels, 6)), b.weight(6))
    return Value(b.node("Transpose", made, perm=[0, 3, 1, 2]), 6, x.side)


def _tile(b: Builder, draw: _Draw, x: Value, live: list[Value]) -> Value:
    if x.channels > 8:
        return x
    return Value(b.node("Tile", x.name, b.integers(1, 2, 1, 1)), 2 * x.channels, x.side)


_STEPS = (
    _conv,
    _conv,
    _depthwise,
    _batch_norm,
    _activation,
    _combine,
    _combine,
    _concat,
    _part,
    _shuffle,
    _excite,
    _pad,
    _space,
    _last,
    _tile,
)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A convolutional network of 2 to 9 steps whose sources are any values made before."""
    b = Builder(np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    x = Value("x", 3, 4)
    live = [_conv(b, draw, x, [])]
    for _ in range(draw(st.integers(2, 9))):
        step = _STEPS[draw(st.integers(0, len(_STEPS) - 1))]
        source = live[-1 - draw(st.integers(0, min(2, len(live) - 1)))]
        if source.channels > 1:
            live.append(step(b, draw, source, live))
    last = live[-1]
    if draw(st.booleans()):
        flat, width = b.node("Flatten", last.name), last.channels * last.side**2
    else:
        flat, width = b.node("ReduceMean", last.name, b.integers(2, 3), keepdims=0), last.channels
    out = b.node("Gemm", flat, b.weight(5, width), b.weight(5), transB=1)
    return b.model({"x": ("N", 3, 4, 4)}, [out])
