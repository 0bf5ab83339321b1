"""Files are read and written without loss, without copies, and whole or not at all."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError, TargetError
from graphopt.ir import Graph
from tests.asserting import assert_same_outputs, parse
from tests.samples import convnet


def _large(elements: int = 5000) -> onnx.ModelProto:
    return parse(
        f"""g (float[N,{elements}] x) => (float[N,8] y)
        <float[{elements},8] w> {{ y = MatMul(x, w) }}"""
    )


def test_save_and_load_is_a_fixed_point(tmp_path: Path) -> None:
    Graph.load(_large()).save(tmp_path / "a.onnx")
    Graph.load(tmp_path / "a.onnx").save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_written_files_are_what_onnx_reads(tmp_path: Path) -> None:
    model = _large()
    Graph.load(model).save(tmp_path / "a.onnx")
    read = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(read, full_check=True)
    assert_same_outputs(model, read, tolerance=0)


def test_size_is_known_before_writing(tmp_path: Path) -> None:
    graph = Graph.load(_large())
    graph.save(tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").stat().st_size == graph.size_bytes()


def test_external_data_go_beside_and_come_back(tmp_path: Path) -> None:
    model = _large()
    Graph.load(model).save(tmp_path / "a.onnx", external_data=True)
    assert (tmp_path / "a.onnx").stat().st_size < 1000
    assert (tmp_path / "a.onnx.data").stat().st_size == 5000 * 8 * 4
    assert_same_outputs(model, Graph.load(tmp_path / "a.onnx"), tolerance=0)
    assert_same_outputs(model, onnx.load(tmp_path / "a.onnx"), tolerance=0)


def test_external_data_written_by_onnx(tmp_path: Path) -> None:
    model = _large()
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(
        copy, tmp_path / "a.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert_same_outputs(model, Graph.load(tmp_path / "a.onnx"), tolerance=0)


def _beside(folder: Path, location: str) -> Graph:
    """A model whose weights lie in another file."""
    onnx.save(
        _large(), folder / "a.onnx", save_as_external_data=True, location=location, size_threshold=0
    )
    return Graph.load(folder / "a.onnx")


def test_weights_of_the_loaded_model_are_not_replaced(tmp_path: Path) -> None:
    graph = _beside(tmp_path, "b.onnx.data").clone()
    weights = (tmp_path / "b.onnx.data").read_bytes()
    for target, external in (("b.onnx", True), ("b.onnx.data", None)):
        with pytest.raises(TargetError, match=r"b\.onnx\.data: holds weights of the model"):
            graph.save(tmp_path / target, external_data=external)
    assert (tmp_path / "b.onnx.data").read_bytes() == weights
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx", "b.onnx.data"]
    graph.save(tmp_path / "b.onnx")
    assert_same_outputs(_large(), Graph.load(tmp_path / "b.onnx"), tolerance=0)


def test_a_model_is_replaced_with_its_own_weights(tmp_path: Path) -> None:
    graph = _beside(tmp_path, "a.onnx.data")
    graph.set_constant("w", np.negative(graph.constants()["w"]))
    graph.save(tmp_path / "a.onnx", external_data=True)
    assert_same_outputs(graph.to_model(), Graph.load(tmp_path / "a.onnx"), tolerance=0)


def test_both_files_are_whole_before_either_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[str, list[int]]] = []
    move = Path.replace

    def watched(self: Path, other: Path) -> Path:
        waiting = [entry for entry in tmp_path.glob(".*") if entry != self]
        moved.append((other.name, [entry.stat().st_size for entry in waiting]))
        return move(self, other)

    monkeypatch.setattr(Path, "replace", watched)
    Graph.load(_large()).save(tmp_path / "a.onnx", external_data=True)
    size = (tmp_path / "a.onnx").stat().st_size
    assert moved == [("a.onnx.data", [size]), ("a.onnx", [])]


@pytest.mark.parametrize(
    "dtype",
    [
        np.float16,
        np.float64,
        np.int8,
        np.int64,
        np.uint16,
        np.bool_,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        ml_dtypes.int4,
        ml_dtypes.uint4,
    ],
)
@pytest.mark.parametrize("size", [10, 9000])
def test_every_element_type_survives(tmp_path: Path, dtype: type, size: int) -> None:
    """Also in packed types, and on both sides of the size from which weights are read apart."""
    array: np.ndarray = np.arange(size).reshape(2, -1).astype(np.int8).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Cast", ["w"], ["z"], to=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, size // 2]),
        ],
        [numpy_helper.from_array(array, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert model.graph.initializer[0].data_type == kind
    loaded = Graph.load(model)
    found = loaded.constant("w")
    assert found is not None
    assert found.dtype == array.dtype
    loaded.save(tmp_path / "a.onnx")
    again = onnx.load(tmp_path / "a.onnx").graph.initializer[0]
    assert again.data_type == kind
    assert numpy_helper.to_array(again).tobytes() == array.tobytes()


def test_weights_are_held_once(tmp_path: Path) -> None:
    """Loading and saving 8 MB of weights takes little more than 8 MB."""
    Graph.load(_large(2**18)).save(tmp_path / "a.onnx")
    size = 2**18 * 8 * 4
    tracemalloc.start()
    graph = Graph.load(tmp_path / "a.onnx")
    graph.clone().save(tmp_path / "b.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * size


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.onnx"
    target.write_bytes(b"old")

    def refuse(self: Path, other: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(TargetError, match="No space left"):
        Graph.load(convnet()).save(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_names_metadata_and_declarations_survive() -> None:
    model = parse("g (float[batch,3] left) => (float[batch,3] right) { right = Relu(left) }")
    model.producer_name, model.model_version, model.doc_string = "p", 7, "about"
    helper.set_model_props(model, {"labels": "a,b"})
    model.graph.input[0].doc_string = "rows"
    again = Graph.load(model).to_model()
    assert (again.producer_name, again.model_version, again.doc_string) == ("p", 7, "about")
    assert Graph.load(model).metadata == {"labels": "a,b"}
    assert again.graph.input == model.graph.input
    assert again.graph.output == model.graph.output
    assert again.opset_import == model.opset_import


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_listed_as_inputs_are_weights(ir_version: int) -> None:
    model = convnet()
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(info)
    graph = Graph.load(model)
    assert graph.inputs == ("x",)
    assert graph.constant("w") is not None
    graph.verify()


def test_some_initializers_listed_as_inputs_are_defaults() -> None:
    model = convnet()
    info = helper.make_tensor_value_info("b", TensorProto.FLOAT, [8])
    model.graph.input.insert(0, info)
    graph = Graph.load(model)
    assert graph.constant("b") is None, "a caller may override it"
    again = graph.to_model()
    assert [entry.name for entry in again.graph.input] == ["b", "x"]
    assert "b" in {tensor.name for tensor in again.graph.initializer}
    assert Graph.load(again).to_bytes() == graph.to_bytes()
    assert Graph.load(graph.clone().to_bytes()).to_bytes() == graph.to_bytes()


def test_model_without_outputs_is_refused() -> None:
    model = convnet()
    del model.graph.output[:]
    with pytest.raises(ModelError, match="no outputs"):
        Graph.load(model)


def test_lying_shape_is_refused() -> None:
    model = _large()
    model.graph.initializer[0].dims[0] = 10**9
    with pytest.raises(ModelError, match="needs 32000000000 bytes, found 160000"):
        Graph.load(model)
