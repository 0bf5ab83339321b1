"""Random small networks: every operator reads any live tensor, so diamonds appear by themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

__all__ = ["networks"]

Shape = tuple[int, int, int, int]
"""(batch, channels, height, width)"""

_BATCH = 2


@dataclass
class _Network:
    """ONNX text in the making: lines, declared tensors, and the shapes of what can be read."""

    draw: st.DrawFn
    live: dict[str, Shape]
    lines: list[str] = field(default_factory=list)
    declared: list[str] = field(default_factory=list)
    count: int = 0

    def new(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def weight(self, *dims: int, kind: str = "w") -> str:
        """A tensor of random floats; "var" in its name makes it positive."""
        name = f"{kind}{self.new()}"
        self.declared.append(f"float[{','.join(map(str, dims))}] {name}")
        return name

    def integers(self, *values: int) -> str:
        name = f"i{self.new()}"
        listed = ",".join(map(str, values))
        self.declared.append(f"int64[{len(values)}] {name} = {{{listed}}}")
        return name

    def number(self, value: float) -> str:
        name = f"c{self.new()}"
        self.declared.append(f"float {name} = {{{value}}}")
        return name

    def say(self, expression: str, *names: str) -> str:
        """One more node; its first result's name."""
        results = names or (self.new(),)
        self.lines.append(f"{', '.join(results)} = {expression}")
        return results[0]

    def pick(self) -> str:
        """A live tensor; every other time the newest, so that chains come about."""
        newest = list(self.live)[-1]
        return self.draw(st.sampled_from([*self.live, *[newest] * len(self.live)]))

    def one_of(self, *options: int) -> int:
        return self.draw(st.sampled_from(options))

    def like(self, name: str, axis: int | None = None) -> str:
        """A live tensor of the same shape, but for one axis."""

        def rest(shape: Shape) -> tuple[int, ...]:
            return tuple(size for place, size in enumerate(shape) if place != axis)

        fits = [n for n, s in sorted(self.live.items()) if rest(s) == rest(self.live[name])]
        return self.draw(st.sampled_from(fits))


def _conv(net: _Network, x: str) -> None:
    n, c, h, w = net.live[x]
    size, out = net.one_of(1, 3), net.one_of(2, 4, 6)
    group = net.one_of(1, 2) if c % 2 == 0 else 1
    bias = f", {net.weight(out)}" if net.one_of(0, 1) else ""
    kernel, pad = net.weight(out, c // group, size, size), size // 2
    attributes = f"group={group}, pads=[{pad},{pad},{pad},{pad}]"
    net.live[net.say(f"Conv<{attributes}>({x}, {kernel}{bias})")] = (n, out, h, w)


def _depthwise(net: _Network, x: str) -> None:
    shape = net.live[x]
    kernel = net.weight(shape[1], 1, 3, 3)
    net.live[net.say(f"Conv<group={shape[1]}, pads=[1,1,1,1]>({x}, {kernel})")] = shape


def _batch_norm(net: _Network, x: str) -> None:
    shape = net.live[x]
    others = ", ".join(net.weight(shape[1], kind=kind) for kind in ("w", "w", "w", "var"))
    net.live[net.say(f"BatchNormalization({x}, {others})")] = shape


def _clamp(net: _Network, x: str) -> None:
    """Relu and Clip, one or two."""
    y = x
    for _ in range(net.one_of(1, 2)):
        low, high = net.number(net.one_of(-1, 0, 1)), net.number(net.one_of(2, 6))
        y = net.say((f"Relu({y})", f"Clip({y}, {low}, {high})")[net.one_of(0, 1)])
    net.live[y] = net.live[x]


def _add(net: _Network, x: str) -> None:
    net.live[net.say(f"Add({x}, {net.like(x)})")] = net.live[x]


def _twice(net: _Network, x: str) -> None:
    """The same computation twice."""
    first, second = net.say(f"Sigmoid({x})"), net.say(f"Sigmoid({x})")
    net.live[first] = net.live[x]
    net.live[net.say(f"Mul({first}, {second})")] = net.live[x]


def _concat(net: _Network, x: str) -> None:
    other = net.like(x, axis=1)
    n, c, h, w = net.live[x]
    net.live[net.say(f"Concat<axis=1>({x}, {other})")] = (n, c + net.live[other][1], h, w)


def _pool(net: _Network, x: str) -> None:
    n, c, h, w = net.live[x]
    size = net.one_of(1, 2) if min(h, w) >= 2 else 1
    op = ("MaxPool", "AveragePool")[net.one_of(0, 1)]
    attributes = f"kernel_shape=[{size},{size}], strides=[{size},{size}]"
    net.live[net.say(f"{op}<{attributes}>({x})")] = (n, c, h // size, w // size)


def _transposes(net: _Network, x: str) -> None:
    """There and back, with or without something in between."""
    y = net.say(f"Transpose<perm=[0,2,3,1]>({x})")
    y = net.say(f"Relu({y})") if net.one_of(0, 1) else y
    net.live[net.say(f"Transpose<perm=[0,3,1,2]>({y})")] = net.live[x]


def _reshapes(net: _Network, x: str) -> None:
    """To another rank and back, by constant or by computed targets."""
    shape = net.live[x]
    y = net.say((f"Flatten({x})", f"Reshape({x}, {net.integers(0, 0, -1)})")[net.one_of(0, 1)])
    target = net.integers(0, *shape[1:])
    if net.one_of(0, 1):
        batch = net.say(f"Slice({net.say(f'Shape({x})')}, {net.integers(0)}, {net.integers(1)})")
        target = net.say(f"Concat<axis=0>({batch}, {net.integers(*shape[1:])})")
    net.live[net.say(f"Reshape({y}, {target})")] = shape


def _squeezes(net: _Network, x: str) -> None:
    axes = net.integers(net.one_of(0, 1, -1))
    net.live[net.say(f"Squeeze({net.say(f'Unsqueeze({x}, {axes})')}, {axes})")] = net.live[x]


def _affine(net: _Network, x: str) -> None:
    """A constant factor or summand, often a neutral one."""
    op = ("Mul", "Add", "Sub", "Div")[net.one_of(0, 1, 2, 3)]
    channels = net.live[x][1]
    constant = net.weight(1, channels, 1, 1, kind="var")
    if net.one_of(0, 1):
        constant = net.number(1 if op in ("Mul", "Div") else 0)
    elif net.one_of(0, 1):
        constant = net.say(f"Exp({constant})")
    net.live[net.say(f"{op}({x}, {constant})")] = net.live[x]


def _nothing(net: _Network, x: str) -> None:
    kind = net.one_of(0, 1, 2, 3)
    zeros = net.integers(*[0] * 8)
    options = (f"Identity({x})", f"Dropout({x})", f"Pad({x}, {zeros})", f"Cast<to=1>({x})")
    net.live[net.say(options[kind])] = net.live[x]


def _slices(net: _Network, x: str) -> None:
    """The channels in two parts, or one part of them, or everything."""
    n, c, h, w = net.live[x]
    cut, one = net.one_of(*range(1, c)) if c > 1 else 1, net.integers(1)
    bounds = [(0, cut), (cut, c)][: net.one_of(1, 2)] if c > 1 else [(0, 2**31 - 1)]
    for start, end in bounds:
        y = net.say(f"Slice({x}, {net.integers(start)}, {net.integers(end)}, {one})")
        net.live[y] = (n, min(end, c) - start, h, w)


def _split(net: _Network, x: str) -> None:
    n, c, h, w = net.live[x]
    sizes = (1, c - 1) if c > 1 else (1,)
    names = tuple(net.new() for _ in sizes)
    net.say(f"Split<axis=1>({x}, {net.integers(*sizes)})", *names)
    net.live.update({name: (n, size, h, w) for name, size in zip(names, sizes, strict=True)})


def _pad(net: _Network, x: str) -> None:
    n, c, h, w = net.live[x]
    net.live[net.say(f"Pad({x}, {net.integers(0, 0, 1, 1, 0, 0, 1, 1)})")] = (n, c, h + 2, w + 2)


def _casts(net: _Network, x: str) -> None:
    net.live[net.say(f"Cast<to=1>({net.say(f'Cast<to=11>({x})')})")] = net.live[x]


_OPERATORS: tuple[Callable[[_Network, str], None], ...] = (
    *(_add, _affine, _batch_norm, _casts, _clamp, _concat, _conv, _depthwise, _nothing, _pad),
    *(_pool, _reshapes, _slices, _split, _squeezes, _transposes, _twice),
)


def _close(net: _Network) -> None:
    """Everything that nobody has read, pooled, joined and mapped to three numbers."""
    read = " ".join(line.split(" = ")[1] for line in net.lines)
    ends = [name for name in net.live if not re.search(rf"\b{name}\b", read)]
    pooled = ", ".join(net.say(f"GlobalAveragePool({name})") for name in ends)
    features = sum(net.live[name][1] for name in ends)
    flat = net.say(f"Flatten({net.say(f'Concat<axis=1>({pooled})')})")
    net.lines.append(f"y = Gemm({flat}, {net.weight(features, 3)}, {net.weight(3)})")


@st.composite
def networks(draw: st.DrawFn) -> str:
    """ONNX text of 1 to 7 operators on one image, closed by pooling and Gemm.

    Some have a second output, of a tensor in the middle.
    """
    batch = draw(st.sampled_from(["N", str(_BATCH)]))
    size = draw(st.sampled_from([4, 5]))
    net = _Network(draw, {"x": (_BATCH, draw(st.sampled_from([2, 3])), size, size)})
    channels = net.live["x"][1]
    for operator in draw(st.lists(st.sampled_from(_OPERATORS), min_size=1, max_size=7)):
        operator(net, net.pick())
    outputs = f"float[{batch},3] y"
    if net.one_of(0, 1, 2) == 0:
        name = net.draw(st.sampled_from([name for name in net.live if name != "x"]))
        outputs += f", float[{','.join([batch, *map(str, net.live[name][1:])])}] {name}"
    _close(net)
    body = "\n  ".join(net.lines)
    signature = f"float[{batch},{channels},{size},{size}] x"
    return f"g ({signature}) => ({outputs})\n<{', '.join(net.declared)}>\n{{\n  {body}\n}}"
