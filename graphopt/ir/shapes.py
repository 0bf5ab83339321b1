"""Shapes and element types of every tensor, as ONNX's own inference finds them.

Declared shapes of intermediate tensors and of outputs are never trusted: files in the wild get
them wrong. Only the inputs' declarations count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import shape_inference

from graphopt.ir.reading import Array

__all__ = ["Dims", "TensorInfo", "array_info", "infer_model", "infer_node", "info_of"]

Dims = tuple[int | str | None, ...]
"""A shape: a number, a symbol's name, or None for a size that nothing is known about."""

_STANDARD = ("", "ai.onnx")
_OPAQUE = "graphopt.opaque"
"""A domain of which ONNX's inference knows nothing."""

_ANONYMOUS = frozenset({"", "?", "None", "unk"})
"""Dimension names that exporters give to several unrelated dimensions."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of one tensor; None where nothing is."""

    dtype: np.dtype[np.generic] | None
    shape: Dims | None


def info_of(type_proto: onnx.TypeProto) -> TensorInfo:
    """Read a declared type; sequences and other non-tensors know nothing."""
    if not type_proto.HasField("tensor_type"):
        return TensorInfo(None, None)
    tensor = type_proto.tensor_type
    known = onnx.helper.get_all_tensor_dtypes()
    dtype = (
        np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if tensor.elem_type in known
        else None
    )
    if not tensor.HasField("shape"):
        return TensorInfo(dtype, None)
    return TensorInfo(dtype, tuple(_dim(dim) for dim in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    if dim.HasField("dim_param") and dim.dim_param not in _ANONYMOUS:
        return str(dim.dim_param)
    return None


def array_info(array: Array) -> TensorInfo:
    return TensorInfo(array.dtype, tuple(array.shape))


def _type_proto(info: TensorInfo) -> onnx.TypeProto | None:
    if info.dtype is None:
        return None
    return onnx.helper.make_tensor_type_proto(
        onnx.helper.np_dtype_to_tensor_dtype(info.dtype), info.shape
    )


def infer_model(skeleton: onnx.ModelProto) -> dict[str, TensorInfo]:
    """Infer every scope of a model whose large initializers may be external; changes `skeleton`."""
    _distrust(skeleton.graph, main=True)
    skeleton.opset_import.add(domain=_OPAQUE, version=1)
    try:
        inferred = shape_inference.infer_shapes(skeleton, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError):
        inferred = skeleton
    return dict(_collect(inferred.graph))


def _distrust(graph: onnx.GraphProto, *, main: bool) -> None:
    del graph.value_info[:]
    for info in graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    for info in graph.input:
        if not main and info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
        for dim in info.type.tensor_type.shape.dim if info.type.HasField("tensor_type") else ():
            if _dim(dim) is None:
                dim.Clear()
    for node in graph.node:
        if _miscounted(node):
            node.domain = _OPAQUE  # infer_node will see it as it is
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _distrust(attribute.g, main=False)


def _miscounted(node: onnx.NodeProto) -> bool:
    """Whether inference may count windows of a pool that start in the padding behind the image.

    ONNX Runtime leaves such a window out when it runs, as PyTorch does, but counts it on loading.
    """
    if node.op_type not in ("AveragePool", "LpPool", "MaxPool") or node.domain not in _STANDARD:
        return False
    pads, strides = _integers(node, "pads"), _integers(node, "strides")
    wide = any(a > b for a, b in zip(strides, _integers(node, "kernel_shape"), strict=False))
    return _integers(node, "ceil_mode") == (1,) and (any(pads) or wide)


def _integers(node: onnx.NodeProto, key: str) -> tuple[int, ...]:
    """An attribute of one integer or several; empty if it is not given."""
    found = next((entry for entry in node.attribute if entry.name == key), None)
    if found is None:
        return ()
    return tuple(found.ints) if found.type == onnx.AttributeProto.INTS else (found.i,)


def _counted(node: onnx.NodeProto, before: Dims | None, after: Dims) -> Dims:
    """What a pool makes; nothing is said of sizes that count a window behind the image."""
    dims = len(after) - 2
    pads = _integers(node, "pads") or (0,) * dims
    strides = _integers(node, "strides") or (1,) * dims
    if before is None or len(before) != len(after):
        return (*after[:2], *(None for _ in range(dims)))
    sizes = [
        count
        if isinstance(size, int) and isinstance(count, int) and (count - 1) * stride < size + front
        else None
        for size, count, stride, front in zip(
            before[2:], after[2:], strides, pads[:dims], strict=True
        )
    ]
    return (*after[:2], *sizes)


def _collect(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorInfo]]:
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield info.name, info_of(info.type)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _collect(attribute.g)


def infer_node(
    node: onnx.NodeProto,
    infos: Mapping[str, TensorInfo],
    constants: Mapping[str, Array],
    domains: Mapping[str, int],
    ir_version: int,
) -> dict[str, TensorInfo]:
    """Infer one node from what is known of its inputs; empty where the operator is unknown."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, domains.get(domain, 1), domain)
        types = {name: proto for name, info in infos.items() if (proto := _type_proto(info))}
        data = {
            name: onnx.numpy_helper.from_array(array, name) for name, array in constants.items()
        }
        imports = [onnx.helper.make_opsetid(name, version) for name, version in domains.items()]
        outputs = shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=imports, ir_version=ir_version
        )
    except (
        onnx.defs.SchemaError,
        shape_inference.InferenceError,
        RuntimeError,
        KeyError,
        onnx.checker.ValidationError,
    ):
        return {}
    found = {name: info_of(proto) for name, proto in outputs.items()}
    if not _miscounted(node):
        return found
    before = infos[node.input[0]].shape
    return {
        name: TensorInfo(info.dtype, info.shape and _counted(node, before, info.shape))
        for name, info in found.items()
    }
