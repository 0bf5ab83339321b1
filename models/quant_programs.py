"""What quantizes a model statically, by tool: programs for `python -c`."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["OPENED", "PROGRAMS", "STORED"]

STORED = """
import sys, numpy as np
model, out, rows = sys.argv[1:4]
feeds = dict(np.load(rows))
count = len(next(iter(feeds.values())))
batches = ({name: array[i:i + 1] for name, array in feeds.items()} for i in range(count))
def dataset(specs):
    from graphopt.data import Dataset
    return Dataset.from_arrays(feeds).bind(specs)
"""
"""Begins a program that is called with a model, an output and stored rows."""

OPENED = """
import sys
import graphopt as go
from graphopt import data as datasets
from graphopt.data import input_specs
model, out, spec, preprocess, count = sys.argv[1:6]
count = int(count)
def dataset(specs):
    return datasets.open(spec, preprocess=preprocess or None, seed=0).bind(specs).take(count)
batches = dataset(input_specs(go.load(model))).batches(1)
"""
"""Begins one that is called with a model, an output, a data set, its preprocessing and a number.

Rows are read when they are asked for, so that what is measured is not the data.
"""

_ORT = """
from onnxruntime.quantization import *
class Reader(CalibrationDataReader):
    def get_next(self):
        return next(batches, None)
quantize_static(model, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.{method})
"""

_NNCF = """
import nncf, onnx
nncf.set_log_level(40)
made = nncf.quantize(onnx.load(model), nncf.Dataset(list(batches)), subset_size=count)
onnx.save(made, out)
"""

_COMPRESSOR = """
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import (
    CalibrationMethod, QuantFormat, QuantType, config, quantize)
class Reader(data_reader.CalibrationDataReader):
    def __init__(self):
        self.rewind()
    def get_next(self):
        return next(self.left, None)
    def rewind(self):
        self.left = iter(kept)
kept = list(batches)
quantize(model, out, config.StaticQuantConfig(
    Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax))
"""

_OURS = """
import graphopt as go
from graphopt.data import input_specs
from graphopt.passbase import Context
from passes.quantize_static import QuantizeStatic
graph = go.load(model)
data = dataset(input_specs(graph))
step = QuantizeStatic(calibrator="{calibrator}", samples=count, settled=None, pays={pays})
original = graph.clone()
step.run(graph, Context(original=original, calibration=data))
graph.save(out)
"""

_CORRECTED = """from passes.correct_bias import CorrectBias
CorrectBias(samples=64).run(graph, Context(original=original, calibration=data))
graph.save"""
"""What the recipe int8 does besides."""

_ROUNDED = """from passes.adaround import AdaRound
AdaRound(samples=count).run(graph, Context(original=original, calibration=data))
graph.save"""
"""Weights in 4 bits, activations in 8."""

_ALL = ("average", "best", "entropy", "minmax", "mse", "percentile")


def _ours(calibrator: str, after: str = "graph.save", *, pays: bool = False) -> str:
    """Our program with its blanks filled in; `after` is what follows the insertion."""
    filled = _OURS.replace("{calibrator}", calibrator).replace("{pays}", str(pays))
    return filled.replace("graph.save", after)


PROGRAMS: Mapping[str, str] = {
    **{f"graphopt-{c}": _ours(c) for c in _ALL},
    "graphopt-int8": _ours("best", _CORRECTED),
    "graphopt-paying": _ours("best", _CORRECTED, pays=True),
    "graphopt-w4a8": _ours("best", _ROUNDED),
    **{
        f"ort-{method.lower()}": _ORT.replace("{method}", method)
        for method in ("MinMax", "Entropy", "Percentile")
    },
    "nncf": _NNCF,
    "neural-compressor": _COMPRESSOR,
}
"""What follows, by tool."""
