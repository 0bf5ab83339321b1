"""Models to pack, packed and restored."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from graphopt.packed import Packing, pack
from graphopt.packed.loader import restore

__all__ = ["assert_restored", "holding", "packed_bytes"]


def packed_bytes(model: onnx.ModelProto | bytes, tmp_path: Path) -> tuple[bytes, Packing]:
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    packing = pack(raw, tmp_path / "m.gopt")
    return (tmp_path / "m.gopt").read_bytes(), packing


def assert_restored(model: onnx.ModelProto, tmp_path: Path) -> bytes:
    packed, packing = packed_bytes(model, tmp_path)
    assert restore(packed) == {"": model.SerializeToString()}
    assert len(packed) == packing.size
    return packed


def holding(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    """A model with some initializers that nothing reads."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
