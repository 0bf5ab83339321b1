"""How small packed models are, beside other compressors, and how much memory packing takes."""

from __future__ import annotations

import lzma
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from onnx import numpy_helper

from graphopt.packed import pack, unpack
from graphopt.packed.loader import restore
from tests.packed.packing import holding, packed_bytes


def _pruned_and_shared(size: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    book = np.sort(rng.standard_normal(64)).astype(np.float32)
    codes = np.clip(rng.normal(32, 9, size), 0, 63).astype(int)
    values = np.where(rng.random(size) < 0.9, np.float32(0), book[codes]).astype(np.float32)
    return holding(numpy_helper.from_array(values, "w"))


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Restoring takes less than 1.3 times the model, writing it to a file a few MB."""
    dense = np.random.default_rng(0).standard_normal(2_000_000).astype(np.float32)
    for model in (_pruned_and_shared(4_000_000), holding(numpy_helper.from_array(dense, "w"))):
        packed, packing = packed_bytes(model, tmp_path)
        tracemalloc.start()
        restore(tmp_path / "m.gopt")
        whole = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        unpack(tmp_path / "m.gopt", tmp_path / "m.onnx")
        streamed = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert whole < 1.3 * packing.restored
        assert streamed < 16e6
        assert len(packed) < 0.95 * packing.restored


@pytest.mark.parametrize("kind", ["dense", "sparse", "shared"])
def test_memory_of_packing_is_bounded(kind: str, tmp_path: Path) -> None:
    """One large tensor, whose coded streams are all in memory: less than 1.3 times the model."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(2_000_000).astype(np.float32)
    if kind == "sparse":
        values[rng.random(len(values)) < 0.5] = 0
    elif kind == "shared":
        np.multiply(np.round(values * 20), 1 / 8, out=values)
    raw = holding(numpy_helper.from_array(values, "w")).SerializeToString()
    tracemalloc.start()
    packing = pack(raw, tmp_path / "m.gopt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * packing.restored
    assert restore(tmp_path / "m.gopt") == {"": raw}


def test_memory_of_packing_does_not_add_up(tmp_path: Path) -> None:
    """Streams are written when they are there: of many tensors the largest counts."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(200_000).astype(np.float32) for _ in range(20)]
    tensors = (numpy_helper.from_array(array, f"w{n}") for n, array in enumerate(arrays))
    raw = holding(*tensors).SerializeToString()
    tracemalloc.start()
    packing = pack(raw, tmp_path / "m.gopt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.25 * packing.restored


def _entropy_bytes(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def test_codes_are_near_their_entropy(tmp_path: Path) -> None:
    """Codes and gaps take what the entropy of each says, and at most 1.5 % or a table more."""
    model = _pruned_and_shared(400_000)
    array = numpy_helper.to_array(model.graph.initializer[0])
    kept = array[array != 0]
    gaps = np.diff(np.flatnonzero(array), prepend=-1)
    _, packing = packed_bytes(model, tmp_path)
    assert packing.parts["codes"] < 1.015 * _entropy_bytes(kept) + 200
    assert packing.parts["gaps"] < 1.015 * _entropy_bytes(gaps) + 200
    assert packing.parts["codebooks"] <= 64 * 4


def _zip_size(raw: bytes, folder: Path) -> int:
    with zipfile.ZipFile(folder / "m.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("m", raw)
    return (folder / "m.zip").stat().st_size


def _compare(raw: bytes, folder: Path) -> tuple[int, int, int]:
    packed, _ = packed_bytes(raw, folder)
    return len(packed), _zip_size(raw, folder), len(zstandard.ZstdCompressor(19).compress(raw))


@pytest.mark.parametrize("shape", [(100, 300), (32, 16, 3, 3)])
def test_smaller_than_general_compressors(shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal(shape).astype(np.float32)
    sparse = np.where(rng.random(shape) < 0.8, np.float32(0), dense).astype(np.float32)
    half = dense.astype(np.float16)
    for array in (dense, sparse, half, np.round(dense * 30) / 8):
        raw = holding(numpy_helper.from_array(array, "w")).SerializeToString()
        ours, zipped, zstd = _compare(raw, tmp_path)
        assert ours < zipped
        assert ours < zstd


def test_repetitions_are_found(tmp_path: Path) -> None:
    """A table that repeats in rows is no worse off than under LZMA."""
    table = np.tile(np.random.default_rng(0).standard_normal(2000).astype(np.float32), 40)
    raw = holding(numpy_helper.from_array(table, "w")).SerializeToString()
    ours, zipped, zstd = _compare(raw, tmp_path)
    assert ours < min(zipped, 1.03 * zstd, 1.05 * len(lzma.compress(raw)))


def test_published_deep_compression(shared_model: Callable[[str], Path], tmp_path: Path) -> None:
    """SqueezeNet, pruned and shared by its authors: 0.66 MB is what they published."""
    source = shared_model("squeezenet10_deepcompression.onnx")
    packing = pack(source, tmp_path / "m.gopt")
    assert packing.size < 0.56e6
    unpack(tmp_path / "m.gopt", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == source.read_bytes()
