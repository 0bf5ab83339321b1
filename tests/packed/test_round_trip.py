"""A packed model is restored byte for byte, is smaller than by general compressors, and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError, TargetError
from graphopt.ir import Graph
from graphopt.packed import is_packed, pack, unpack
from graphopt.packed import loader as loader_module
from graphopt.packed.loader import restore, session
from graphopt.runtime import Session
from tests.asserting import parse
from tests.packed.packing import assert_restored, holding, packed_bytes
from tests.samples import convnet
from tests.strategies import networks

LOADER = Path(loader_module.__file__)


@settings(max_examples=60, deadline=None)
@given(text=networks())
def test_networks(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert_restored(parse(text), tmp_path_factory.mktemp("packed"))


_TYPES = [
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64,
    np.uint64, np.bool_, np.complex64, np.complex128, ml_dtypes.int4, ml_dtypes.uint4,
]  # fmt: skip


@pytest.mark.parametrize("dtype", _TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (1,), (257, 5), (40_001,)])
def test_element_types(dtype: type, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Any bits at all: NaN payloads, both zeros, denormals."""
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    size = int(np.prod(shape))
    packs = kind in (ml_dtypes.int4, ml_dtypes.uint4)
    raw = rng.bytes((size + 1) // 2 if packs else size * kind.itemsize)
    proto = TensorProto(
        name="w", dims=shape, data_type=helper.np_dtype_to_tensor_dtype(kind), raw_data=raw
    )
    assert_restored(holding(proto), tmp_path)


@settings(max_examples=150, deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]),
        st.integers(0, 3000),
        elements=st.sampled_from([0, 0, 0, 1, 7, 255]),
        fill=st.sampled_from([0, 7]),
    ),
    noise=st.integers(0, 400),
)
def test_any_pattern(
    array: np.ndarray, noise: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Sparse, constant, few values, many values, and what lies between."""
    rng = np.random.default_rng(noise)
    places = rng.integers(0, max(len(array), 1), min(noise, len(array)))
    array[places] = rng.integers(0, np.iinfo(array.dtype).max, len(places), dtype=array.dtype)
    assert_restored(holding(numpy_helper.from_array(array, "w")), tmp_path_factory.mktemp("p"))


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(700_000, np.float32),
        np.full(700_000, -0.0, np.float32),
        np.eye(800, dtype=np.float32),
        np.arange(600_000, dtype=np.int64),
        (np.arange(600_000) % 60_000).astype(np.int32),
        np.random.default_rng(0).integers(0, 1000, 600_000).astype(np.float32),
        np.where(np.random.default_rng(0).random(600_000) < 0.999, np.float32(0), np.float32(2)),
    ],
    ids=["zeros", "negative zeros", "diagonal", "counting", "codes", "thousand", "gaps"],
)
def test_large_and_extreme(values: np.ndarray, tmp_path: Path) -> None:
    """Longer than what is coded or restored at a time."""
    packed = assert_restored(holding(numpy_helper.from_array(values, "w")), tmp_path)
    assert len(packed) < 0.5 * values.nbytes


def test_strings_and_typed_fields(tmp_path: Path) -> None:
    text = TensorProto(name="s", dims=[3], data_type=TensorProto.STRING)
    text.string_data.extend([b"one", b"", bytes(range(256))])
    floats = helper.make_tensor("f", TensorProto.FLOAT, [500], np.arange(500.0).tolist())
    doubles = helper.make_tensor("d", TensorProto.DOUBLE, [500], np.arange(500.0).tolist())
    numbers = helper.make_tensor("i", TensorProto.INT64, [500], list(range(-250, 250)))
    assert_restored(holding(text, floats, doubles, numbers), tmp_path)


def test_bodies_and_attributes(tmp_path: Path) -> None:
    """Weights of If's branches and of Constant nodes are segments of their own."""
    weight = numpy_helper.from_array(np.zeros((50, 50), np.float32), "w")
    constant = helper.make_node("Constant", [], ["c"], value=weight)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [50, 50])],
        [weight],
    )
    choice = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [constant, choice],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [50, 50])],
    )
    packed = assert_restored(helper.make_model(graph), tmp_path)
    assert len(packed) < 600, "30,000 bytes of zeros, three times the same"


def test_same_weights_are_stored_once(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    one, two = (numpy_helper.from_array(array, name) for name in "ab")
    assert len(assert_restored(holding(one, two), tmp_path)) < 1.01 * array.nbytes


def _with_external_data(folder: Path) -> Path:
    model = parse(
        """g (float[N,300] x) => (float[N,8] z)
        <float[300,40] a, float[40,8] b> { y = MatMul(x, a)  z = MatMul(y, b) }"""
    )
    folder.mkdir()
    (folder / "data").mkdir()
    onnx.save(
        model, folder / "m.onnx", save_as_external_data=True, location="data/w.bin",
        size_threshold=0,
    )  # fmt: skip
    return folder / "m.onnx"


def test_external_data(tmp_path: Path) -> None:
    source = _with_external_data(tmp_path / "a")
    pack(source, tmp_path / "m.gopt")
    unpack(tmp_path / "m.gopt", tmp_path / "b" / "m.onnx")
    for name in ("m.onnx", "data/w.bin"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(TargetError, match="external data go there"):
        unpack(tmp_path / "m.gopt", tmp_path / "b" / "m.onnx")
    feeds = {"x": np.ones((2, 300), np.float32)}
    with Session.open(source) as one, Session.open(tmp_path / "m.gopt") as other:
        assert np.array_equal(one.run(feeds)[0], other.run(feeds)[0])
    assert np.array_equal(session(tmp_path / "m.gopt").run(None, feeds)[0], one_run(source, feeds))
    loaded = Graph.load(tmp_path / "m.gopt").constant("a")
    original = Graph.load(source).constant("a")
    assert loaded is not None
    assert np.array_equal(loaded, original)  # type: ignore[arg-type]


def one_run(model: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with Session.open(model) as opened:
        return opened.run(feeds)[0]


def _without(source: Path, key: str) -> None:
    """Leave out an entry of all references to external data."""
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        kept = [entry for entry in tensor.external_data if entry.key != key]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
    source.write_bytes(model.SerializeToString())


def test_external_data_of_unsaid_length(tmp_path: Path) -> None:
    """Several tensors in one file: each has as many bytes as its elements take."""
    source = _with_external_data(tmp_path / "a")
    whole = pack(source, tmp_path / "m.gopt")
    wanted = Graph.load(source).constants()
    _without(source, "length")
    for name, array in Graph.load(source).constants().items():
        np.testing.assert_array_equal(array, wanted[name])
    assert pack(source, tmp_path / "m.gopt").size <= whole.size
    unpack(tmp_path / "m.gopt", tmp_path / "b" / "m.onnx")
    for name in ("m.onnx", "data/w.bin"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (tmp_path / "a" / "data" / "w.bin").write_bytes(bytes(1000))
    with pytest.raises(ModelError, match="1000 bytes, 48000 are needed"):
        pack(source, tmp_path / "m.gopt")
    with pytest.raises(ModelError, match="1000 bytes, 48000 are needed"):
        Graph.load(source)


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, np.complex64, np.float16])
def test_external_elements_of_every_width(dtype: type, tmp_path: Path) -> None:
    """Also of half a byte, and of two halves: the file ends where they do."""
    rng = np.random.default_rng(0)
    arrays: list[np.ndarray] = [rng.integers(-8, 8, size).astype(dtype) for size in (301, 400)]
    tensors = [numpy_helper.from_array(array, f"w{n}") for n, array in enumerate(arrays)]
    content = b""
    for tensor in tensors:
        raw, offset = tensor.raw_data, len(content)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", str(offset))):
            tensor.external_data.add(key=key, value=value)
        content += raw
    (tmp_path / "w.bin").write_bytes(content)
    model = holding(*tensors)
    model.graph.node.extend(helper.make_node("Identity", [t.name], [f"{t.name}i"]) for t in tensors)
    model.graph.output.extend(
        helper.make_tensor_value_info(f"{t.name}i", t.data_type, t.dims) for t in tensors
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    pack(tmp_path / "m.onnx", tmp_path / "m.gopt")
    assert restore(tmp_path / "m.gopt")["w.bin"] == content
    loaded = Graph.load(tmp_path / "m.onnx").constants()
    for tensor, array in zip(tensors, arrays, strict=True):
        np.testing.assert_array_equal(loaded[tensor.name], array)


def test_external_data_under_a_name_that_is_not_plain(tmp_path: Path) -> None:
    source = _with_external_data(tmp_path / "a")
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "./data/w.bin"
    source.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"called './data/w\.bin', and a packed model has plain"):
        pack(source, tmp_path / "m.gopt")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "absent.bin"])
def test_external_data_elsewhere(location: str, tmp_path: Path) -> None:
    source = _with_external_data(tmp_path / "a")
    (tmp_path / "w.bin").write_bytes(bytes(100_000))
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = location
    source.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"leave the model's folder|cannot be read"):
        pack(source, tmp_path / "m.gopt")
    assert not (tmp_path / "m.gopt").exists()


def test_external_data_too_short(tmp_path: Path) -> None:
    source = _with_external_data(tmp_path / "a")
    (tmp_path / "a/data/w.bin").write_bytes(bytes(100))
    with pytest.raises(ModelError, match="copy the whole file"):
        pack(source, tmp_path / "m.gopt")


@pytest.mark.parametrize("content", [b"", b"hello, I am a text", bytes(5000), b"\x3a\x05abc"])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        pack(content, tmp_path / "m.gopt")


def test_packed_twice_is_refused(tmp_path: Path) -> None:
    packed, _ = packed_bytes(convnet(), tmp_path)
    assert is_packed(packed)
    with pytest.raises(ModelError, match="packed already"):
        pack(packed, tmp_path / "again.gopt")


def test_copied_loader_stands_alone(tmp_path: Path) -> None:
    """The one file, copied elsewhere, runs a model; it imports nothing of ours, and no torch."""
    (tmp_path / "loader.py").write_text(LOADER.read_text())
    pack(convnet().SerializeToString(), tmp_path / "m.gopt")
    script = (
        "import sys, numpy, loader\n"
        "feeds = {i.name: numpy.ones([d if isinstance(d, int) else 1 for d in i.shape], 'f')\n"
        "         for i in loader.session('m.gopt').get_inputs()}\n"
        "print(loader.session('m.gopt').run(None, feeds)[0].shape)\n"
        "assert not {'graphopt', 'torch', 'onnx'} & set(sys.modules), sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path[:0] = ['.']\n{script}"],
        cwd=tmp_path,
        env={"PATH": ""},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(LOADER.read_text().splitlines()) < 300
