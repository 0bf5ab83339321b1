"""Find where in an ONNX file the tensors' data lie, without parsing what is between them.

The wire format of protobuf is walked (https://protobuf.dev/programming-guides/encoding); field
numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graphopt.errors import ModelError

__all__ = ["Payload", "Scan", "scan"]

Content = bytes | mmap.mmap


@dataclass(frozen=True, order=True)
class Payload:
    """Where a tensor's elements lie; `width` is the bytes of one."""

    start: int
    length: int
    width: int


@dataclass(frozen=True)
class Scan:
    """The payloads in a model's own bytes, and those in files beside it, by their location."""

    inside: tuple[Payload, ...]
    beside: Mapping[str, tuple[Payload, ...]]


_Place = tuple[int, int, int, int]
"""Field number, wire type, start and end of what it holds."""

# Which fields of a message hold messages that can hold tensors.
_TREE: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_DEEPEST = 100  # protobuf's own limit
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_DIMS, _DATA_TYPE, _FLOATS, _RAW, _DOUBLES, _EXTERNAL = 1, 2, 4, 9, 10, 13
# Bytes of an element by TensorProto.DataType; types of other numbers are taken as single bytes.
_WIDTHS = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 14: 4, 15: 8, 16: 2}
_COMPLEX, _BITS = {14: 8, 15: 16}, {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}


def scan(content: Content, what: str) -> Scan:
    """Return where a model's tensors lie; raises ModelError if the bytes are no ONNX model."""
    inside: list[Payload] = []
    beside: dict[str, list[Payload]] = {}
    try:
        found = {number for number, wire, _, _ in _fields(content, 0, len(content)) if wire == 2}
        for tensor in _tensors(content, (0, 0, 0, len(content)), "model", 0):
            location, payload = _payload(content, tensor)
            if payload is not None:
                (inside if location is None else beside.setdefault(location, [])).append(payload)
    except (ValueError, IndexError) as error:
        raise ModelError(
            f"{what}: not an ONNX model, or a truncated one ({len(content)} bytes); export it again"
        ) from error
    if not {_MODEL_GRAPH, _MODEL_OPSET} <= found:
        raise ModelError(f"{what}: not an ONNX model (no graph or no operator set); check the file")
    return Scan(tuple(inside), {name: _apart(places) for name, places in beside.items()})


def _apart(places: list[Payload]) -> tuple[Payload, ...]:
    """In order; of places that overlap, the first: tensors may share external data."""
    kept: list[Payload] = []
    for place in sorted(set(places), key=lambda place: (place.start, -place.length)):
        if not kept or place.start >= kept[-1].start + kept[-1].length:
            kept.append(place)
    return tuple(kept)


def _varint(content: Content, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a varint of more than ten bytes")


def _varints(content: Content, start: int, end: int) -> Iterator[int]:
    while start < end:
        value, start = _varint(content, start)
        yield value


def _fields(content: Content, start: int, end: int) -> Iterator[_Place]:
    while start < end:
        tag, body = _varint(content, start)
        number, wire = tag >> 3, tag & 7
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 0:
            _, start = _varint(content, body)
        elif wire == 2:
            length, body = _varint(content, body)
        elif not length:
            raise ValueError(f"wire type {wire}")
        if wire != 0:
            start = body + length
        if number == 0 or start > end:
            raise ValueError("a field runs past the end")
        yield number, wire, body, start


def _tensors(content: Content, place: _Place, kind: str, depth: int) -> Iterator[_Place]:
    if depth > _DEEPEST:
        raise ValueError("messages nested too deep")
    for field in _fields(content, place[2], place[3]):
        inner = _TREE[kind].get(field[0]) if field[1] == 2 else None
        if inner == "tensor":
            yield field
        elif inner is not None:
            yield from _tensors(content, field, inner, depth + 1)


def _payload(content: Content, tensor: _Place) -> tuple[str | None, Payload | None]:
    """Where a tensor's elements lie, and in which file beside the model, None if in its own."""
    width, kind, dims, entries = 1, 0, list[tuple[int, int]](), dict[str, str]()
    held: tuple[int, int, int] | None = None
    for number, wire, start, end in _fields(content, tensor[2], tensor[3]):
        if number == _DATA_TYPE and wire == 0:
            kind = _varint(content, start)[0]
            width = _WIDTHS.get(kind, 1)
        elif number == _DIMS:
            dims.append((start, end))
        elif number in (_FLOATS, _RAW, _DOUBLES) and wire == 2:
            held = number, start, end
        elif number == _EXTERNAL and wire == 2:
            texts = {n: bytes(content[s:e]).decode() for n, _, s, e in _fields(content, start, end)}
            entries[texts.get(1, "")] = texts.get(2, "")
    if "location" in entries:
        bits = _BITS.get(kind, 8 * _COMPLEX.get(kind, width))
        length = int(entries["length"]) if "length" in entries else None
        if length is None:
            length = -(-_elements(content, dims) * bits // 8)
        return entries["location"], Payload(int(entries.get("offset", "0")), length, width)
    if held is None:
        return None, None
    number, start, end = held
    width = {_FLOATS: 4, _DOUBLES: 8}.get(number, width)
    return None, Payload(start, end - start, width if (end - start) % width == 0 else 1)


def _elements(content: Content, dims: list[tuple[int, int]]) -> int:
    """The product of what is listed in these places; what no file can hold is refused."""
    count, empty = 1, False
    for start, end in dims:
        for dim in _varints(content, start, end):
            count, empty = count * max(dim, 1), empty or dim == 0
            if count >= 1 << 64:
                raise ValueError("more elements than any file has")
    return 0 if empty else count
