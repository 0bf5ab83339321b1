"""The matrix of operators and tables: what is known of an operator is known everywhere.

Each table answers one question of an operator: which indices belong together (ties), how much work
it is (cost), how it is computed in torch (lowering), which of its inputs and attributes say sizes
(repair), and over what it sums or normalises (mask). A missing row fails with the whole matrix.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import onnx
import onnx.defs
import pytest

from graphopt.cost import operator
from graphopt.cost.macs import FREE, MACS
from graphopt.coupling import RULES
from graphopt.coupling.masking import MASKS
from graphopt.coupling.repairs import REPAIRS
from graphopt.ir import Graph
from graphopt.lens import LOWERINGS

MODELS = sorted(Path(os.environ.get("GRAPHOPT_MODELS", "absent")).glob("*.onnx"))

USED = """
    Add ArgMax Attention AveragePool BatchNormalization Cast CastLike Clip Concat ConstantOfShape
    Conv ConvTranspose DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Equal Erf Exp
    Expand Flatten GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool
    GroupNormalization HardSigmoid HardSwish Identity If InstanceNormalization LSTM
    LayerNormalization LeakyRelu Loop MatMul MatMulInteger Max MaxPool Mean Min Mish Mul Not PRelu
    Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ScatterND Shape Sigmoid Size Slice Softmax SpaceToDepth
    Split Sqrt Squeeze Sub Sum Swish Tanh Tile TopK Transpose Unsqueeze Upsample Where
    com.microsoft:FusedConv com.microsoft:FusedMatMul com.microsoft:SkipLayerNormalization
"""
"""What networks are made of, by any exporter."""

BODIES = {"If", "Loop", "Scan"}
"""Their bodies are counted node by node; what they read is pinned, and so said."""

SIZED = {
    "Attention", "Conv", "ConvTranspose", "Expand", "GRU", "Gather", "GroupNormalization", "LSTM",
    "Pad", "QLinearConv", "RNN", "Reshape", "Resize", "Slice", "Split", "com.microsoft:FusedConv",
}  # fmt: skip
"""Those whose attributes or integer inputs say a size that a cut changes."""

JOINING = {
    "Conv", "ConvTranspose", "DynamicQuantizeLinear", "Einsum", "GRU", "Gemm", "GroupNormalization",
    "LSTM", "LayerNormalization", "MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "RMSNormalization", "RNN", "com.microsoft:FusedConv", "com.microsoft:FusedMatMul",
    "com.microsoft:SkipLayerNormalization",
    *(name for name in USED.split() if name.startswith("Reduce")),
}  # fmt: skip
"""Those that read several channels at once: a mask must hide from them what is removed."""

UNTIED = {
    "com.microsoft:DynamicQuantizeLSTM": "the scale of its hidden state changes with every unit",
}
"""Operators of shared models that are pinned, and why."""

UNLOWERED = {
    "com.microsoft:DynamicQuantizeLSTM": "a result of quantization, not trained",
}


def _lowered(name: str) -> bool:
    """Whether the trainable view has a row, or the definition by other operators."""
    if name in LOWERINGS or name in UNLOWERED:
        return True
    domain, _, op = name.rpartition(":")
    if domain:  # made by optimizers for inference, not trained
        return True
    schema = onnx.defs.get_schema(op)
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


TABLES: Mapping[str, Callable[[str], bool]] = {
    "ties": lambda name: name in RULES or name in BODIES or name in UNTIED,
    "cost": lambda name: name in MACS or name in FREE or name in BODIES,
    "lowering": _lowered,
    "repair": lambda name: name in REPAIRS or name not in SIZED,
    "mask": lambda name: name in MASKS or name not in JOINING,
}


def matrix(names: Iterable[str]) -> tuple[str, list[str]]:
    """The matrix as text, and the rows that lack something."""
    lines = [f"{'operator':40}" + "".join(f"{table:>10}" for table in TABLES)]
    lacking = []
    for name in sorted(names):
        cells = [has(name) for has in TABLES.values()]
        lines.append(f"{name:40}" + "".join(f"{'yes' if cell else 'NO':>10}" for cell in cells))
        if not all(cells):
            lacking.append(name)
    return "\n".join(lines), lacking


def test_every_operator_is_in_every_table() -> None:
    text, lacking = matrix(USED.split())
    assert not lacking, f"no row for {lacking}\n{text}"


@pytest.mark.slow
def test_operators_of_shared_models_are_in_every_table() -> None:
    names = {operator(node) for path in MODELS for node in Graph.load(path).all_nodes()}
    text, lacking = matrix(names)
    assert not lacking, f"no row for {lacking}\n{text}"


def test_the_matrix_shows_what_is_missing() -> None:
    text, lacking = matrix(["Relu", "Det"])
    assert lacking == ["Det"]
    assert "NO" in text.splitlines()[1]


def test_tables_that_cut_agree() -> None:
    """A row that repairs or masks is of an operator that is tied at all."""
    assert set(REPAIRS) <= set(RULES)
    assert set(MASKS) <= set(RULES)


_SIZES = {
    "group", "hidden_size", "num_groups", "num_heads", "output_shape", "q_num_heads", "shape",
    "sizes", "split", "starts", "ends",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name in RULES if ":" not in name))
def test_operators_that_say_sizes_are_repaired(name: str) -> None:
    if name == "SimplifiedLayerNormalization":  # ONNX Runtime's own, without a schema
        return
    schema = onnx.defs.get_schema(name)
    says = {*schema.attributes, *(formal.name for formal in schema.inputs)} & _SIZES
    assert not says or name in REPAIRS, f"{name} says {sorted(says)}"


def test_exceptions_are_needed() -> None:
    """An operator that has got its row is no exception any more."""
    assert not set(UNTIED) & set(RULES)
    assert not set(UNLOWERED) & set(LOWERINGS)
    assert {*USED.split()} >= SIZED | JOINING
