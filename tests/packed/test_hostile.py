"""Models and folders that are made to do harm to packing and unpacking do none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from graphopt.errors import ModelError, TargetError
from graphopt.ir import Graph
from graphopt.packed import coding, pack, packing, unpack
from tests.cli.calling import Run
from tests.samples import convnet


def _beside(*places: tuple[str, bytes], dims: tuple[int, ...] = (1,)) -> ModelProto:
    """A model whose initializers lie in files of these names; their entries are unchecked."""
    model = convnet()
    for number, (location, content) in enumerate(places):
        tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="length", value=str(len(content)))
        model.graph.initializer.append(tensor)
    return model


def _written(folder: Path, *names: str, dims: tuple[int, ...] = (1,)) -> Path:
    """A folder with such a model and its external data, 400 bytes each."""
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(np.random.default_rng(number).bytes(400))
    model = _beside(*((name, bytes(400)) for name in names), dims=dims)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed model with external data in three files, the second in a folder of its own."""
    pack(_written(tmp_path / "source", "a.bin", "data/b.bin", "c.bin"), tmp_path / "m.gopt")
    return tmp_path / "m.gopt"


def test_unpacking_writes_all_files(packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "new" / "deep" / "m.onnx")
    assert _files(tmp_path / "new" / "deep") == _files(tmp_path / "source")


def test_unpacking_damage_writes_nothing(packed: Path, tmp_path: Path) -> None:
    """Not even the files that are whole, or a folder; what was there stays."""
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    packed.write_bytes(content)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "m.onnx").write_bytes(b"old")
    for folder in ("new/deep", "old"):
        with pytest.raises(ModelError, match="checksum"):
            unpack(packed, tmp_path / folder / "m.onnx")
    assert not (tmp_path / "new").exists()
    assert _files(tmp_path / "old") == {"m.onnx": b"old"}
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["m.onnx"]


def test_unpacking_where_a_file_cannot_be(packed: Path, tmp_path: Path) -> None:
    """What was put in place before is taken back."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "data").write_bytes(b"in the way")
    with pytest.raises(TargetError, match=r"cannot be written \(Not a directory\)"):
        unpack(packed, tmp_path / "new" / "m.onnx")
    assert _files(tmp_path / "new") == {"data": b"in the way"}


def test_unpacking_where_the_model_cannot_be(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "new" / "m.onnx").mkdir(parents=True)
    with pytest.raises(TargetError, match="cannot be written"):
        unpack(packed, tmp_path / "new" / "m.onnx")
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["m.onnx"]


def test_unpacking_through_a_link(packed: Path, tmp_path: Path) -> None:
    """A link in the folder must not lead what is in the file elsewhere."""
    (tmp_path / "new").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "new" / "data").symlink_to(tmp_path / "outside")
    with pytest.raises(TargetError, match="leaves the model's folder by a link"):
        unpack(packed, tmp_path / "new" / "m.onnx")
    (tmp_path / "new" / "data").unlink()
    (tmp_path / "new" / "a.bin").symlink_to(tmp_path / "outside" / "nothing")
    with pytest.raises(TargetError, match="move what is there away"):
        unpack(packed, tmp_path / "new" / "m.onnx")
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "new" / "m.onnx").exists()


@pytest.mark.parametrize("victim", ["w.bin", "m.onnx"])
def test_packing_onto_what_is_read(victim: str, run: Run, tmp_path: Path) -> None:
    """External data are input too, and input is never changed."""
    source = _written(tmp_path / "a", "w.bin")
    before = _files(tmp_path / "a")
    with pytest.raises(TargetError, match="would replace a file of the model"):
        pack(source, tmp_path / "a" / victim)
    assert run("pack", source, tmp_path / "a" / victim)[0] == 2
    assert _files(tmp_path / "a") == before


@pytest.mark.parametrize("location", ["w\0.bin", "\0"])
def test_location_that_is_no_path(location: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_beside((location, b"")).SerializeToString())
    with pytest.raises(ModelError, match="leave the model's folder"):
        pack(path, tmp_path / "m.gopt")
    with pytest.raises(ModelError, match="leaves the model's folder"):
        Graph.load(path)


def test_location_that_is_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / "m.onnx"
    path.write_bytes(_beside(("loop", bytes(4))).SerializeToString())
    with pytest.raises(ModelError, match="cannot be read"):
        pack(path, tmp_path / "m.gopt")
    with pytest.raises(ModelError, match="cannot be read"):
        Graph.load(path)


@pytest.mark.parametrize("name", ["m.onnx", "w.bin"])
def test_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    source = _written(tmp_path / "a", "w.bin")
    (tmp_path / "a" / name).unlink()
    os.mkfifo(tmp_path / "a" / name)
    with pytest.raises(ModelError, match="no regular file"):
        pack(source, tmp_path / "m.gopt")


def test_dimensions_without_end(tmp_path: Path) -> None:
    """Their product would take minutes; it is not formed if the length is said."""
    source = _written(tmp_path / "a", "w.bin", dims=(2**62,) * 300_000)
    pack(source, tmp_path / "m.gopt")
    model = ModelProto.FromString(source.read_bytes())
    del model.graph.initializer[-1].external_data[1]
    source.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="not an ONNX model"):
        pack(source, tmp_path / "n.gopt")


def test_interrupted_packing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that memory is still in use; nothing is left behind."""

    def interrupted(content: memoryview, width: int) -> coding.Coded:
        elements = np.frombuffer(content, f"<u{width}")
        if width == 1:
            return coding.code(content, width)
        raise KeyboardInterrupt(len(elements))

    monkeypatch.setattr(packing, "code", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(_written(tmp_path / "a", "w.bin"), tmp_path / "m.gopt")
    assert not (tmp_path / "m.gopt").exists()
