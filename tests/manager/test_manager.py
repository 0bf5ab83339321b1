"""The manager keeps promises: what fails its gate or budget is rolled back and named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from graphopt.data import Dataset, input_specs
from graphopt.errors import DataError, RecipeError
from graphopt.ir import Edit, Graph, NewNode
from graphopt.manager import PassFailure, PassManager, Result
from graphopt.passbase import Context, Pass, Promise
from graphopt.runtime import Session
from passes.finetune import Finetune
from tests.asserting import assert_same_outputs, operators, parse
from tests.samples import Break, Crash, Damage, DropIdentity, GiveUp, Greedy, Scale, convnet


def _run(*steps: Pass | list[Pass], data: Dataset | None = None, **options: object) -> Result:
    return PassManager(list(steps)).run(
        Graph.load(convnet()),
        data=data,
        **{"measure": False, **options},  # type: ignore[arg-type]
    )


def _images(count: int = 64) -> Dataset:
    rng = np.random.default_rng(1)
    return Dataset.from_arrays({"x": rng.standard_normal((count, 3, 8, 8), dtype=np.float32)})


def test_exact_pass_is_accepted_and_recorded() -> None:
    result = _run(DropIdentity())
    assert "Identity" not in operators(result.graph)
    (record,) = result.report.passes
    assert record.accepted
    assert record.modified
    assert (record.before.nodes, record.after.nodes) == (6, 5)
    assert record.max_abs_diff == 0
    assert not result.report.unmet


def test_the_given_graph_is_not_touched() -> None:
    graph = Graph.load(convnet())
    before = graph.fingerprint()
    PassManager([DropIdentity()]).run(graph, measure=False)
    assert graph.fingerprint() == before


def test_wrong_exact_pass_is_bisected_and_rolled_back() -> None:
    result = _run(DropIdentity(), Damage())
    by_name = {record.name: record for record in result.report.passes}
    assert by_name["drop-identity"].accepted
    assert not by_name["damage"].accepted
    assert "differs by" in str(by_name["damage"].reason)
    assert operators(result.graph).count("Relu") == 1
    assert "Identity" not in operators(result.graph)
    assert_same_outputs(convnet(), result.graph)


def test_error_that_no_output_shows_is_found() -> None:
    """What is computed here is next to nothing beside the constant that is added at the end."""
    model = parse(
        """blind (float[N,4] x) => (float[N,4] y) <float[4,4] w> {
            a = MatMul(x, w)
            r = Relu(a)
            h = Mul(r, r)
            t = Constant<value_float=0.000000000001>()
            s = Mul(h, t)
            o = Constant<value_float=1.0>()
            y = Add(s, o)
        }"""
    )
    result = PassManager([Damage()]).run(Graph.load(model), measure=False)
    assert not result.report.passes[0].accepted
    assert "tensor 'h'" in str(result.report.passes[0].reason)


def test_pass_that_leaves_a_broken_graph_is_rolled_back() -> None:
    result = _run(Break(), DropIdentity())
    by_name = {record.name: record for record in result.report.passes}
    assert "broken graph" in str(by_name["break"].reason)
    assert by_name["drop-identity"].accepted


@dataclass(frozen=True)
class _CountThreads(Pass):
    """Note on how many threads networks are run and trained."""

    name: ClassVar[str] = "count-threads"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.notes["threads"] = [context.threads, context.resources().threads]


@pytest.mark.parametrize(
    ("given", "noted"), [(None, [1, 0]), (0, [0, 0]), (1, [1, 1]), (3, [3, 3])]
)
def test_trainings_use_all_cores_unless_told(given: int | None, noted: list[int]) -> None:
    result = _run(_CountThreads(), threads=given)
    assert result.report.passes[0].notes["threads"] == noted


def test_crash_leaves_a_reproducer(tmp_path: Path) -> None:
    with pytest.raises(PassFailure, match="planned"):
        _run(DropIdentity(), Crash(), failures=tmp_path / "failures")
    (folder,) = (tmp_path / "failures").iterdir()
    saved = Graph.load(folder / "before.onnx")
    assert operators(saved) == operators(Graph.load(convnet()))
    assert "--passes drop-identity,crash" in (folder / "reproduce.sh").read_text()


def test_pass_that_gives_up_ends_only_its_stage() -> None:
    result = _run(GiveUp(), DropIdentity())
    assert "Identity" not in operators(result.graph)
    assert result.report.unmet == ("give-up: no row for 'Conv'",)


def test_loss_within_budget_stays() -> None:
    result = _run(Scale(factor=0.999), data=_images(), max_drop=0.2)
    assert result.report.passes[0].accepted
    assert result.report.metric == "agreement"
    assert result.report.drop is not None
    assert result.report.drop <= 0.2


def test_loss_beyond_budget_is_rolled_back_and_unmet() -> None:
    result = _run(Scale(factor=-1.0), data=_images(), max_drop=0.01)
    assert not result.report.passes[0].accepted
    assert "the budget is 0.01" in result.report.unmet[0]
    assert_same_outputs(convnet(), result.graph, tolerance=0)
    assert result.report.drop == 0


def test_budget_is_checked_at_the_end_of_a_stage() -> None:
    """What one pass ruins the next one of its stage may mend."""
    result = _run([Scale(factor=-1.0), Scale(factor=-1.0)], data=_images(), max_drop=0.01)
    assert [record.accepted for record in result.report.passes] == [True, True]


def test_what_measures_never_calibrates() -> None:
    result = _run(Greedy(), data=_images(64))
    assert result.report.passes[0].notes == {"seen": 32}


def test_needs_are_checked_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match="needs inputs"):
        _run(Greedy())


@pytest.mark.parametrize(
    "step",
    [
        {"quantize-weights": {"method": "gptq"}},
        {"equalize": {"balance": "activations"}},
        {"prune-weights": {"sparsity": 0.5, "course": "ramp"}},
        "correct-bias",
    ],
)
def test_inputs_that_an_option_needs_are_asked_for_before_anything_runs(
    step: str | dict[str, object],
) -> None:
    text = "n (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"
    manager = PassManager(["lossless", step])
    with pytest.raises(RecipeError, match=r"pass '.*needs inputs"):
        manager.run(Graph.load(parse(text)), measure=False)


def test_metric_without_data_is_refused() -> None:
    with pytest.raises(RecipeError, match="--data"):
        _run(DropIdentity(), max_drop=0.1)


def test_finished_stages_are_taken_from_the_work_directory(tmp_path: Path) -> None:
    first = _run(DropIdentity(), Scale(), data=_images(), workdir=tmp_path)
    assert not any(record.cached for record in first.report.passes)
    again = _run(DropIdentity(), Scale(), data=_images(), workdir=tmp_path)
    assert all(record.cached for record in again.report.passes)
    assert again.graph.content_hash() == first.graph.content_hash()
    changed = _run(DropIdentity(), Scale(factor=0.25), data=_images(), workdir=tmp_path)
    assert [record.cached for record in changed.report.passes] == [True, False]


@dataclass(frozen=True)
class _LeaveBehind(Pass):
    """Leave a node that reaches no output: a file that is read again has it no more."""

    name: ClassVar[str] = "leave-behind"
    promise: ClassVar[Promise] = Promise.LOSSY

    def run(self, graph: Graph, context: Context) -> None:
        graph.apply(Edit((), (NewNode("Relu", ("x",), ("nobody",)),)))


def test_later_stages_are_found_whatever_writing_a_stage_has_dropped(tmp_path: Path) -> None:
    steps = (_LeaveBehind(), Scale())
    first = _run(*steps, data=_images(), workdir=tmp_path)
    again = _run(*steps, data=_images(), workdir=tmp_path)
    assert [record.cached for record in again.report.passes] == [True, True]
    assert again.graph.content_hash() == first.graph.content_hash()


def test_results_judged_by_another_measure_are_made_again(tmp_path: Path) -> None:
    """Else a loss that one metric allows would pass for one that another allows."""
    mine = tmp_path / "mine.py"
    mine.write_text("def same(outputs, labels):\n    return 1.0\n")
    metric = f"{mine}:same"

    def run(data: Dataset, **options: object) -> Result:
        options = {"max_drop": 0.5, "workdir": tmp_path / "work", **options}
        return _run(Scale(factor=0.25), data=data, **options)

    def cached(result: Result) -> bool:
        return result.report.passes[0].cached

    assert not cached(run(_images(), metric=metric))
    assert cached(run(_images(), metric=metric))
    assert not cached(run(_images(), metric="sqnr"))
    assert not cached(run(_images(), metric=metric, eval_data=_images(32)))
    mine.write_text("def same(outputs, labels):\n    return 2.0\n")
    assert not cached(run(_images(), metric=metric))


def test_functions_of_the_users_are_known_by_what_is_in_their_files(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    rows = Dataset.from_arrays({"x": next(_images().batches(64))["x"]}, np.zeros(64, np.int64))
    step = Finetune(epochs=0.1, loss=f"{mine}:loss", precision="float32", layout="contiguous")
    found = []
    for factor in (1, 1, 2):
        body = f"return {factor} * outputs[0].square().mean()"
        mine.write_text(f"def loss(outputs, labels):\n    {body}\n")
        result = _run(step, data=rows, workdir=tmp_path / "work")
        found.append(result.report.passes[0].cached)
    assert found == [False, True, False]


def test_damaged_work_directory_is_no_obstacle(tmp_path: Path) -> None:
    _run(DropIdentity(), workdir=tmp_path)
    for file in (tmp_path / "stages").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    result = _run(DropIdentity(), workdir=tmp_path)
    assert not any(record.cached for record in result.report.passes)


def test_no_passes_are_refused() -> None:
    with pytest.raises(RecipeError, match="no passes"):
        PassManager([])


@pytest.mark.parametrize("given", ["digits", {"x": np.zeros((4, 3, 8, 8), np.float32)}])
def test_data_must_be_a_dataset(given: object) -> None:
    with pytest.raises(DataError, match=r"must be a Dataset, got .*graphopt\.data\.open"):
        _run(DropIdentity(), data=given)  # type: ignore[arg-type]


def test_what_a_report_prints() -> None:
    text = str(PassManager([DropIdentity()]).run(Graph.load(convnet())).report)
    assert "nodes       6 -> 5 (-16.7%)" in text
    assert "\nlatency " in text


@pytest.mark.parametrize("right", [True, False])
def test_an_original_that_only_guesses_is_told(*, right: bool) -> None:
    """Wrong labels or pixels leave nothing to lose, and every budget is met."""
    images = _images().bind(input_specs(Graph.load(convnet())))
    with Session.open(Graph.load(convnet())) as session:
        best = session.run(images.source.read(images.indices))[0].argmax(axis=1)
    labels = best if right else (best + 1) % 10
    data = Dataset.from_arrays(images.source.read(images.indices), labels=labels)
    report = _run(DropIdentity(), data=data).report
    assert report.metric == "top1"
    told = [remark for remark in report.remarks if "no more than by guessing" in remark]
    assert bool(told) is not right
    assert report.to_json()["remarks"] == list(report.remarks)


def test_passes_are_logged_as_they_go(caplog: pytest.LogCaptureFixture) -> None:
    """A long run in a pipe shows nothing else."""
    with caplog.at_level("INFO", "graphopt.manager"):
        _run(DropIdentity(), Scale(factor=3.0), data=_images(), max_drop=0.01, metric="mse")
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == ["drop-identity: 6 -> 5 nodes", "scale{factor=3.0}"]
    assert said[2].startswith("rolled back scale: mse drops by ")
