"""Run the operator test cases of the onnx wheel through the trainable view, and print a summary.

    python -m models.lowering_coverage [part of a case's name]

A case is skipped where an operator of it has no row. Cases whose expected output is random, by
their own definition, are run but not compared.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from graphopt.errors import ModelError, RuntimeUnavailable, UnsupportedOp
from graphopt.ir import Graph
from graphopt.lens import LOWERINGS, lower
from graphopt.lens.dtypes import carrier, to_array, to_tensor
from graphopt.runtime import Session

__all__ = ["Case", "Coverage", "collect", "run_case", "run_cases"]

RANDOM = ("bernoulli", "randomuniform", "randomnormal", "training_dropout")
"""Parts of the names of cases whose expected output is one random draw."""
_LAST_DIGITS = {"float16": 2**-9, "bfloat16": 2**-6}


@dataclass(frozen=True)
class Case:
    """One operator test: a model, and its inputs and expected outputs."""

    name: str
    model: onnx.ModelProto
    inputs: Sequence[object]
    outputs: Sequence[object]
    rtol: float
    atol: float


@dataclass
class Coverage:
    """What became of the cases."""

    agreed: list[str] = field(default_factory=list)
    unlowered: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)


def collect(part: str = "") -> Iterator[Case]:
    """The cases that the onnx wheel generates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    for case in found:
        if part in case.name and case.data_sets and case.model is not None:
            inputs, outputs = case.data_sets[0]
            yield Case(case.name, case.model, inputs, outputs, case.rtol, case.atol)


def run_case(case: Case) -> str:
    """Lower and run a case; return how it differs from what is expected, or nothing.

    Raises UnsupportedOp where it cannot be lowered.
    """
    module = lower(Graph.load(case.model))
    with torch.no_grad():
        made = module(*[_given(value) for value in case.inputs])
    results = made if isinstance(made, tuple) else (made,)
    if any(part in case.name for part in RANDOM):
        return ""
    if len(results) != len(case.outputs):
        return f"{len(results)} outputs instead of {len(case.outputs)}"
    text = _differences(results, case.outputs, case)
    if text and not _differences(results, _runtime_outputs(case), case):
        return ""
    return text


def _differences(results: Sequence[object], expected: Sequence[object], case: Case) -> str:
    pairs = zip(results, expected, strict=True)
    return next((text for pair in pairs if (text := _difference(*pair, case))), "")


def _runtime_outputs(case: Case) -> Sequence[object]:
    """What ONNX Runtime gives, where it and the test disagree; the test's word if it cannot."""
    try:
        with Session.open(case.model, optimize="none") as session:
            names = [port.name for port in session.inputs]
            arrays = [np.asarray(value) for value in case.inputs]
            return session.run(dict(zip(names, arrays, strict=True)))
    except RuntimeUnavailable:
        return case.outputs


def _given(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_given(item) for item in value]
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    array = np.asarray(array)
    if carrier(array.dtype) is None:
        raise UnsupportedOp(f"torch has no type for inputs of {array.dtype}")
    return to_tensor(array)


def _difference(result: object, expected: object, case: Case) -> str:
    if isinstance(expected, list | tuple):
        assert isinstance(result, list | tuple)
        return _differences(result, expected, case)
    if isinstance(expected, onnx.TensorProto):
        expected = numpy_helper.to_array(expected)
    assert isinstance(result, torch.Tensor)
    want = np.asarray(expected)
    got = to_array(result)
    if got.shape != want.shape:
        return f"shape {got.shape} instead of {want.shape}"
    got = got.astype(want.dtype)
    if want.dtype.kind in "fcV":
        # Half precision differs in its last digit with the order of summation.
        coarse = _LAST_DIGITS.get(want.dtype.name, 0.0)
        kind = np.complex128 if want.dtype.kind == "c" else np.float64
        got, want = got.astype(kind), want.astype(kind)
        # What cancels to zero keeps the rounding of the terms.
        floor = max(case.atol, 1e-6 * float(np.max(np.abs(want[np.isfinite(want)]), initial=0)))
        if np.allclose(got, want, rtol=max(case.rtol, coarse), atol=floor, equal_nan=True):
            return ""
        return f"off by {np.nanmax(np.abs(got - want)):.2e}"
    return "" if np.array_equal(got, want) else "other integers"


def run_cases(cases: Iterator[Case]) -> Coverage:
    """Run cases, and keep going whatever happens in one."""
    coverage = Coverage()
    for case in cases:
        try:
            text = run_case(case)
        except (UnsupportedOp, ModelError) as error:
            coverage.unlowered[case.name] = str(error).split(";")[0]
            continue
        # Whatever torch raises is a finding about the case, not the end of the survey.
        except Exception as error:  # noqa: BLE001
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if text:
            coverage.failed[case.name] = text
        else:
            coverage.agreed.append(case.name)
            coverage.operators.update(node.op_type for node in case.model.graph.node)
    return coverage


def main() -> None:
    torch.set_num_threads(1)
    coverage = run_cases(collect(sys.argv[1] if len(sys.argv) > 1 else ""))
    for name, text in coverage.failed.items():
        print(f"differs: {name}: {text}")
    reasons = [re.sub(r" node '.*?'", "", text) for text in coverage.unlowered.values()]
    for reason, count in Counter(reasons).most_common():
        print(f"not lowered: {count} x {reason}")
    rows = len(coverage.operators & set(LOWERINGS))
    print(f"operators: {len(coverage.operators)} ({rows} by a row of {len(LOWERINGS)})")
    print(f"cases: {len(coverage.agreed)} agree, {len(coverage.failed)} differ, "
          f"{len(coverage.unlowered)} not lowered")  # fmt: skip


if __name__ == "__main__":
    main()
