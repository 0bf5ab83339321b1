"""Send every operator test case of the onnx wheel through load, lossless, save and run.

    python models/onnx_cases.py [--recipe NAME] [--jobs N] [--json FILE]

For each case that ONNX Runtime can run, the outputs before and after are compared on the case's
own inputs: equal bit for bit, equal to 1e-5 of their range, or different. Cases that are refused
(Optional and Map types) are counted and named.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from graphopt.errors import GraphoptError, RuntimeUnavailable
from graphopt.ir import Graph
from graphopt.manager import PassManager
from graphopt.runtime import Session, compare

__all__ = ["Finding", "check", "main"]

_TOLERANCE = 1e-5
_HALF_TOLERANCE = 2e-3
"""For models that compute in float16: two units in the last place of its 11 bits."""


@dataclass(frozen=True)
class Finding:
    """What became of one case, and the reason where it is not `equal`."""

    name: str
    outcome: str
    reason: str = ""


def check(name: str, model: onnx.ModelProto, inputs: Sequence[object], recipe: str) -> Finding:
    """Optimize one model and compare its outputs on the given inputs."""
    data = model.SerializeToString()
    try:
        with Session.open(data, optimize="none") as session:
            pairs = zip(session.inputs, inputs, strict=False)
            feeds = {port.name: _as_array(value) for port, value in pairs}
            names = [port.name for port in session.outputs]
            before = session.run(feeds)
            again = session.run(feeds)
    except RuntimeUnavailable as error:
        return Finding(name, "not runnable", str(error))
    try:
        graph = Graph.load(data)
        result = PassManager(recipe).run(graph, measure=False)
        with Session.open(result.graph.to_bytes(), optimize="none") as session:
            after = session.run(feeds)
    except GraphoptError as error:
        return Finding(name, "refused", str(error))
    if not compare(before, again, names).identical:
        return Finding(name, "random")
    found = compare(before, after, names)
    if found.identical:
        return Finding(name, "equal")
    worst = found.worst
    half = any(array.dtype == np.float16 for array in (*feeds.values(), *before))
    close = found.within(_HALF_TOLERANCE if half else _TOLERANCE)
    return Finding(name, "close" if close else "different", str(worst))


def _as_array(value: object) -> np.ndarray:
    """Sequences as sessions take them: 1-D object arrays of their elements."""
    if not isinstance(value, list):
        return np.asarray(value)
    array = np.empty(len(value), dtype=object)
    for place, element in enumerate(value):
        array[place] = np.asarray(element)
    return array


def _check_index(index: int, recipe: str) -> Finding:
    case = _cases()[index]
    assert case.model is not None, "operator cases come with a model"
    assert case.data_sets is not None, "and with data"
    return check(case.name, case.model, case.data_sets[0][0], recipe)


def _cases() -> Sequence[TestCase]:
    if not _CASES:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            _CASES.extend(collect_testcases(None))
    return _CASES


_CASES: list[TestCase] = []
"""Generating the cases takes seconds, so each process does it once."""


def run_all(recipe: str, jobs: int, every: int = 1) -> list[Finding]:
    """Check all cases, or one in `every`."""
    indices = range(0, len(_cases()), every)
    if jobs == 1:
        return [_check_index(index, recipe) for index in indices]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(_check_index, indices, [recipe] * len(indices), chunksize=16))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", default="lossless")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    findings = run_all(arguments.recipe, arguments.jobs)
    counts = Counter(finding.outcome for finding in findings)
    for outcome, count in counts.most_common():
        print(f"{count:6d} {outcome}")
    for finding in findings:
        if finding.outcome in ("refused", "different"):
            print(f"{finding.outcome}: {finding.name}: {finding.reason}")
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(finding) for finding in findings], indent=1))
    return 1 if counts["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
