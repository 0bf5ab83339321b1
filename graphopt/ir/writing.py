"""Write ONNX files straight from the arrays that hold the weights, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt.errors import TargetError
from graphopt.files import atomic_file, is_one_of
from graphopt.ir.reading import PACKED_TYPES, Array, field_tag

__all__ = [
    "SINGLE_FILE_LIMIT",
    "data_path",
    "noted",
    "skeleton_tensor",
    "write_model",
    "written_size",
]

SINGLE_FILE_LIMIT = 2**31 - 2**20
"""Protobuf refuses messages of 2 GiB; larger models get their weights in a file beside."""

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_EXTERNAL_ALIGNMENT = 64


def skeleton_tensor(name: str, array: Array, inline_bytes: int) -> onnx.TensorProto:
    """A TensorProto that holds the data if small, and else only says they are elsewhere."""
    if array.nbytes <= inline_bytes or array.dtype == object:
        return numpy_helper.from_array(np.asarray(array), name)
    proto = onnx.TensorProto(
        name=name, dims=array.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    )
    if proto.data_type in PACKED_TYPES:
        return numpy_helper.from_array(array, name)
    proto.data_location = onnx.TensorProto.EXTERNAL
    proto.external_data.add(key="location", value="weights")
    return proto


def data_path(path: Path) -> Path:
    """Where the weights of a model too large for one file go."""
    return path.with_name(path.name + ".data")


def write_model(
    path: Path,
    skeleton: onnx.ModelProto,
    arrays: Mapping[str, Array],
    *,
    external: bool | None,
    kept: Sequence[Path] = (),
) -> None:
    """Write a skeleton and its large initializers, whole or not at all.

    `external` puts the large initializers into `<name>.data` beside the model; None does so only
    where one file would pass protobuf's 2 GiB. Raises TargetError if the target cannot be written,
    or would replace a file that is `kept`.
    """
    total = sum(array.nbytes for array in arrays.values())
    if external is None:
        external = skeleton.ByteSize() + total > SINGLE_FILE_LIMIT
    beside = data_path(path)
    for target in (path, beside) if external else (path,):
        if is_one_of(target, kept):
            raise TargetError(
                f"{target}: holds weights of the model that was loaded; save under another name"
            )
    if not external:
        with atomic_file(path) as file:
            _write_single(file, skeleton, arrays)
        return
    places: dict[str, tuple[int, int]] = {}
    with atomic_file(path) as file, atomic_file(beside) as data:
        for name, array in arrays.items():
            data.write(b"\0" * (-data.tell() % _EXTERNAL_ALIGNMENT))
            places[name] = (data.tell(), array.nbytes)
            data.write(_raw(array))
        model = onnx.ModelProto()
        model.CopyFrom(skeleton)
        for tensor in model.graph.initializer:
            if tensor.name in places:
                _point(tensor, beside.name, *places[tensor.name])
        file.write(model.SerializeToString(deterministic=True))
        file.flush()  # both are whole before either takes its place, the data first


def written_size(skeleton: onnx.ModelProto, arrays: Mapping[str, Array]) -> int:
    """The bytes that `write_model` would write, without writing them."""
    head = onnx.ModelProto()
    head.CopyFrom(skeleton)
    kept = [tensor for tensor in skeleton.graph.initializer if tensor.name not in arrays]
    del head.graph.initializer[:]
    head.graph.initializer.extend(kept)
    graph = int(head.graph.ByteSize())
    graph += sum(len(_tensor_front(name, array)) + array.nbytes for name, array in arrays.items())
    head.ClearField("graph")
    return int(head.ByteSize()) + len(field_tag(_GRAPH, graph)) + graph


def _point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _write_single(file: BinaryIO, skeleton: onnx.ModelProto, arrays: Mapping[str, Array]) -> None:
    graph = onnx.GraphProto()
    graph.CopyFrom(skeleton.graph)
    del graph.initializer[:]
    graph.initializer.extend(t for t in skeleton.graph.initializer if t.name not in arrays)
    head = onnx.ModelProto()
    head.CopyFrom(skeleton)
    head.ClearField("graph")
    small = graph.SerializeToString(deterministic=True)
    fronts = {name: _tensor_front(name, array) for name, array in arrays.items()}
    total = len(small) + sum(len(front) + arrays[name].nbytes for name, front in fronts.items())
    file.write(head.SerializeToString(deterministic=True))
    file.write(field_tag(_GRAPH, total) + small)
    for name, front in fronts.items():
        file.write(front)
        file.write(_raw(arrays[name]))


def _tensor_front(name: str, array: Array) -> bytes:
    """All of an initializer field but the raw data that follow it."""
    proto = onnx.TensorProto(
        name=name, dims=array.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    )
    header = proto.SerializeToString(deterministic=True) + field_tag(_RAW_DATA, array.nbytes)
    return field_tag(_INITIALIZER, len(header) + array.nbytes) + header


def _raw(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def noted(frame: onnx.ModelProto, key: str, value: str | None) -> onnx.ModelProto:
    """A copy of a model with an entry of its metadata set, or without it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(frame)
    del changed.metadata_props[:]
    changed.metadata_props.extend(entry for entry in frame.metadata_props if entry.key != key)
    if value is not None:
        changed.metadata_props.add(key=key, value=value)
    return changed
