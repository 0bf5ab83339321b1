"""Read ONNX files so that no large weight is ever held twice.

A protobuf parser copies every byte of a model. Here the wire format is walked instead
(https://protobuf.dev/programming-guides/encoding): everything but the large initializers goes
through protobuf as a *skeleton*; the large ones are read straight into numpy arrays. Field numbers
are those of onnx.proto.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from graphopt.errors import ModelError
from graphopt.files import is_inside
from graphopt.packed import is_packed, unpack

__all__ = [
    "INLINE_BYTES",
    "PACKED_TYPES",
    "Array",
    "Read",
    "field_tag",
    "read_model",
]

Array = npt.NDArray[np.generic]

INLINE_BYTES = 4096
"""Initializers up to this many bytes stay in the skeleton, where protobuf is fast enough."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_PACKED_BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if name in onnx.TensorProto.DataType.keys()  # noqa: SIM118 (an enum wrapper, not a dict)
}
PACKED_TYPES = frozenset(_PACKED_BITS)


class _WireError(ValueError):
    """The bytes do not follow protobuf's wire format."""


class _Field(NamedTuple):
    number: int
    start: int  # of the tag
    body: int  # of the payload
    end: int


class Read(NamedTuple):
    """What was read: the skeleton, large top-level initializers by name, and external files."""

    skeleton: onnx.ModelProto
    arrays: dict[str, Array]
    external: tuple[Path, ...] = ()


def read_model(source: str | Path | bytes) -> Read:
    """Read the skeleton and the large top-level initializers, by name.

    In the skeleton those initializers keep name, shape and type, but no data. External data are
    read from the model's own folder and from nowhere else.

    A packed model is restored first, in a temporary folder. Raises ModelError if the bytes are not
    an ONNX model, or its external data are missing, too short, or outside the model's folder.
    """
    if is_packed(source):
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            unpack(source, Path(folder) / "model.onnx")
            return read_model(Path(folder) / "model.onnx")._replace(external=())
    if isinstance(source, bytes):
        return _parse(io.BytesIO(source), len(source), "the given bytes", None)
    path = Path(source)
    if path.is_dir():
        raise ModelError(f"{path}: is a directory, not an ONNX file; name the file inside it")
    try:
        with path.open("rb") as file:
            return _parse(file, os.fstat(file.fileno()).st_size, str(path), path.parent)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _parse(file: BinaryIO, size: int, what: str, folder: Path | None) -> Read:
    model, graph = io.BytesIO(), io.BytesIO()
    arrays: dict[str, Array] = {}
    try:
        for field in _fields(file, 0, size):
            if field.number == _GRAPH:
                _split_graph(file, field, graph, arrays)
            else:
                model.write(_slice(file, field.start, field.end))
        skeleton = onnx.ModelProto.FromString(model.getvalue())
        skeleton.graph.MergeFromString(graph.getvalue())
    except (DecodeError, _WireError) as error:
        raise ModelError(
            f"{what}: not an ONNX model, or a truncated one ({size} bytes); export it again"
        ) from error
    if not skeleton.opset_import and not skeleton.graph.node:
        raise ModelError(f"{what}: not an ONNX model (no operator set, no nodes); check the file")
    return Read(skeleton, arrays, _load_external(skeleton, arrays, what, folder))


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise _WireError("bad varint")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[_Field]:
    position = start
    while position < end:
        file.seek(position)
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        length = 0
        if wire == 2:
            length = _varint(file)
        elif wire == 0:
            _varint(file)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _WireError(f"wire type {wire}")
        body = file.tell()
        if number == 0 or body + length > end:
            raise _WireError("field runs past the end")
        yield _Field(number, position, body, body + length)
        position = body + length


def _slice(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    chunk = file.read(end - start)
    if len(chunk) != end - start:
        raise _WireError("unexpected end")
    return chunk


def _split_graph(
    file: BinaryIO, graph: _Field, skeleton: io.BytesIO, arrays: dict[str, Array]
) -> None:
    for field in _fields(file, graph.body, graph.end):
        if field.number != _INITIALIZER or field.end - field.body <= INLINE_BYTES:
            skeleton.write(_slice(file, field.start, field.end))
            continue
        tensor, array = _read_tensor(file, field)
        if array is not None:
            arrays[tensor.name] = array
        body = tensor.SerializeToString()
        skeleton.write(field_tag(_INITIALIZER, len(body)) + body)


def _read_tensor(file: BinaryIO, tensor: _Field) -> tuple[onnx.TensorProto, Array | None]:
    header, raw = io.BytesIO(), None
    for field in _fields(file, tensor.body, tensor.end):
        if field.number == _RAW_DATA:
            raw = field
        else:
            header.write(_slice(file, field.start, field.end))
    proto = onnx.TensorProto.FromString(header.getvalue())
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        return proto, None
    if raw is not None and _is_plain(proto):
        array = _read_array(file, proto, raw.body, raw.end - raw.body)
    else:
        if raw is not None:
            proto.raw_data = _slice(file, raw.body, raw.end)
        array = _to_array(proto)
    return _without_data(proto), array


def _is_plain(proto: onnx.TensorProto) -> bool:
    """Whether raw data are one element after another, in a type numpy (or ml_dtypes) has."""
    return proto.data_type not in PACKED_TYPES and proto.data_type != onnx.TensorProto.STRING


def _to_array(proto: onnx.TensorProto) -> Array:
    try:
        return numpy_helper.to_array(proto)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"initializer {proto.name!r}: shape {list(proto.dims)} or type {proto.data_type} does "
            f"not fit its data ({error}); export the model again"
        ) from error


def _without_data(proto: onnx.TensorProto) -> onnx.TensorProto:
    return onnx.TensorProto(name=proto.name, dims=proto.dims, data_type=proto.data_type)


def _read_array(file: BinaryIO, proto: onnx.TensorProto, offset: int, length: int) -> Array:
    """Read `length` bytes at `offset` as the tensor's elements, without a copy."""
    if proto.data_type not in onnx.helper.get_all_tensor_dtypes():
        raise ModelError(f"initializer {proto.name!r}: unknown element type {proto.data_type}")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(proto.data_type))
    if math.prod(proto.dims) * dtype.itemsize != length or any(dim < 0 for dim in proto.dims):
        raise ModelError(
            f"initializer {proto.name!r}: shape {list(proto.dims)} of {dtype} needs "
            f"{math.prod(proto.dims) * dtype.itemsize} bytes, found {length}; export it again"
        )
    array = np.empty(tuple(proto.dims), dtype)
    file.seek(offset)
    view = array.reshape(-1).view(np.uint8)
    if length and file.readinto(view.data) != length:  # type: ignore[attr-defined]
        raise _WireError("unexpected end")
    return array


def _load_external(
    skeleton: onnx.ModelProto, arrays: dict[str, Array], what: str, folder: Path | None
) -> tuple[Path, ...]:
    """Read what lies in external files; return these."""
    files: dict[Path, None] = {}
    for tensor in _external_tensors(skeleton.graph):
        if folder is None:
            raise ModelError(
                f"{what}: initializer {tensor.name!r} lies in an external file; "
                "load the model by its path"
            )
        entry = {item.key: item.value for item in tensor.external_data}
        path = _inside(folder, entry.get("location", ""), tensor.name)
        files[Path(os.path.realpath(path))] = None
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                offset = int(entry.get("offset", "0"))
                length = int(entry.get("length", _needed(tensor, size - offset)))
                if offset < 0 or length < 0 or offset + length > size:
                    raise ModelError(
                        f"initializer {tensor.name!r}: external data {path.name!r} has {size} "
                        f"bytes, {offset + length} are needed; copy the whole file again"
                    )
                if _is_plain(tensor):
                    array = _read_array(file, tensor, offset, length)
                else:
                    tensor.raw_data = _slice(file, offset, offset + length)
                    array = _to_array(_embedded(tensor))
        except OSError as error:
            raise ModelError(
                f"initializer {tensor.name!r}: external data {str(path)!r} cannot be read "
                f"({error.strerror}); put it beside the model"
            ) from error
        except ValueError as error:
            raise ModelError(
                f"initializer {tensor.name!r}: bad external data entry {entry}"
            ) from error
        name = tensor.name
        tensor.CopyFrom(_without_data(tensor))
        if name in {initializer.name for initializer in skeleton.graph.initializer}:
            arrays[name] = array
        else:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return tuple(files)


def _needed(proto: onnx.TensorProto, rest: int) -> int:
    """The bytes that a tensor's elements take, where that can be told; else the rest of a file."""
    kind = proto.data_type
    if kind not in onnx.helper.get_all_tensor_dtypes() or any(dim < 0 for dim in proto.dims):
        return rest
    whole = 8 * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize
    return -(-math.prod(proto.dims) * _PACKED_BITS.get(kind, whole) // 8)


def _embedded(tensor: onnx.TensorProto) -> onnx.TensorProto:
    plain = _without_data(tensor)
    plain.raw_data = tensor.raw_data
    return plain


def _external_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.t.data_location == onnx.TensorProto.EXTERNAL:
                yield attribute.t
            if attribute.HasField("g"):
                yield from _external_tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _external_tensors(subgraph)


def _inside(folder: Path, location: str, name: str) -> Path:
    """The external file, refused unless it really lies in the model's folder."""
    target = folder / location
    if not location or not is_inside(target, folder):
        raise ModelError(
            f"initializer {name!r}: external data {location!r} leaves the model's folder; "
            "refused, put the file beside the model"
        )
    return target


def field_tag(number: int, length: int) -> bytes:
    """The bytes that open a length-delimited field."""
    out, value = bytearray([number << 3 | 2]), length
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
