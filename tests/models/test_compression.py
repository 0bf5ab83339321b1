"""The scoreboards of packed and compressed models: rows that parse, sizes that add up."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from graphopt.ir import Graph
from graphopt.notation import parse as parse_passes
from graphopt.packed import pack
from graphopt.recipe import read_steps
from models.compression_table import ROWS, sizes_of
from models.pack_table import restored
from passes.prune_weights import PruneWeights
from passes.share_weights import ShareWeights
from tests.asserting import apply_pass, parse

_NET = """g (float[N,784] x) => (float[N,10] y)
<float[784,100] w, float[100] b, float[100,10] v> {
    a = Gemm(x, w, b)
    r = Relu(a)
    y = MatMul(r, v)
}"""


@pytest.mark.parametrize("network", ROWS)
def test_rows_are_passes(network: str) -> None:
    assert set(ROWS[network]) == {"deep-compression", "dynamic-network-surgery", "han-2015"}
    for text in ROWS[network].values():
        assert all(stage.passes for stage in read_steps(parse_passes(text)))


def test_huffman_codes_save_over_fixed_ones() -> None:
    """Pruning, sharing and coding each make it smaller, and general compressors are behind."""
    steps = (PruneWeights(sparsity=0.9), ShareWeights(bits=5))
    plain, pruned = Graph.load(parse(_NET)), apply_pass(parse(_NET), steps[0])
    shared = apply_pass(parse(_NET), *steps)
    sizes = [sizes_of(graph) for graph in (plain, pruned, shared)]
    assert sizes[0].packed > 4 * sizes[1].packed > 8 * sizes[2].packed
    assert sizes[2].left == sizes[2].weights - round(0.9 * sizes[2].weights)
    assert sizes[2].packed < sizes[2].fixed
    assert sizes[2].packed < min(sizes[2].zstd, sizes[2].zipped)


def test_restoring_is_measured(tmp_path: Path) -> None:
    onnx.save(parse(_NET), tmp_path / "m.onnx")
    pack(tmp_path / "m.onnx", tmp_path / "m.gopt")
    speed, peak, same = restored(tmp_path / "m.gopt", tmp_path / "m.onnx")
    assert speed > 0
    assert peak >= 0
    assert same
