"""Values of the metrics, what a drop is, and what each refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graphopt.data import Dataset, InputSpec
from graphopt.errors import DataError, RecipeError
from graphopt.metrics import METRICS, Outputs, Predict, Reference, choose, class_scores

Batch = Mapping[str, np.ndarray]


def rows(*outputs: np.ndarray) -> tuple[Dataset, Predict]:
    """A data set of row numbers and a model that looks its outputs up."""
    count = len(outputs[0])
    dataset = Dataset.from_arrays({"row": np.arange(count)})

    def predict(batch: Batch) -> Outputs:
        return [output[batch["row"]] for output in outputs]

    return dataset, predict


def labelled(count: int, labels: object) -> Dataset:
    return Dataset.from_arrays({"row": np.arange(count)}, labels=np.asarray(labels))


def noisy(output: np.ndarray, power: float) -> np.ndarray:
    """The output with an error of this power relative to it."""
    error = np.random.default_rng(1).standard_normal(output.shape)
    scale = math.sqrt(power * np.square(output).sum() / np.square(error).sum())
    return output + scale * error


SCORES = np.random.default_rng(0).standard_normal((100, 10)).astype(np.float32)
BEST = SCORES.argmax(axis=1)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_top1_counts_over_all_batches(batch_size: int) -> None:
    labels = np.where(np.arange(100) < 73, BEST, (BEST + 1) % 10)
    _, predict = rows(SCORES)
    value = METRICS["top1"].evaluate(predict, labelled(100, labels), batch_size=batch_size)
    assert value == 0.73


def test_top5_follows_the_ranking() -> None:
    order = np.argsort(-SCORES, axis=1)
    _, predict = rows(SCORES)
    for rank in range(10):
        value = METRICS["top5"].evaluate(predict, labelled(100, order[:, rank]))
        assert value == (1.0 if rank < 5 else 0.0)


def test_a_model_that_cannot_tell_classes_apart_gains_nothing() -> None:
    _, predict = rows(np.zeros((10, 10), np.float32))
    assert METRICS["top1"].evaluate(predict, labelled(10, range(10))) == 0.1
    assert METRICS["top5"].evaluate(predict, labelled(10, range(10))) == 0.5


def test_rows_without_numbers_are_wrong() -> None:
    scores = SCORES.copy()
    scores[:40, 3] = np.nan
    dataset, broken = rows(scores)
    _, whole = rows(SCORES)
    assert METRICS["top1"].evaluate(broken, labelled(100, BEST)) == 0.6
    assert METRICS["top5"].evaluate(broken, labelled(100, BEST)) == 0.6
    assert METRICS["agreement"].evaluate(broken, dataset, whole) == 0.6


def test_agreement_is_with_the_best_class_of_the_original() -> None:
    changed = SCORES.copy()
    changed[:30] *= -1
    dataset, original = rows(SCORES)
    _, other = rows(changed)
    assert METRICS["agreement"].evaluate(original, dataset, original) == 1.0
    assert METRICS["agreement"].evaluate(other, dataset, original) == 0.7


@pytest.mark.parametrize("power", [1e-1, 1e-4])
def test_mse_and_sqnr_are_relative_to_the_signal(power: float) -> None:
    output = 1000 * SCORES.astype(np.float64).reshape(100, 2, 5)
    dataset, original = rows(output)
    _, other = rows(noisy(output, power))
    mse = METRICS["mse"].evaluate(other, dataset, original, batch_size=9)
    sqnr = METRICS["sqnr"].evaluate(other, dataset, original, batch_size=9)
    assert mse == pytest.approx(power)
    assert sqnr == pytest.approx(-10 * math.log10(power))
    assert METRICS["mse"].drop(0.0, mse) == pytest.approx(power)
    assert METRICS["sqnr"].drop(math.inf, sqnr) == pytest.approx(power)


def test_small_outputs_count_as_much_as_large_ones() -> None:
    small, large = np.ones((10, 1)), np.full((10, 1000), 1e6)
    dataset, original = rows(small, large)
    _, other = rows(2 * small, large)
    assert METRICS["mse"].evaluate(other, dataset, original) == 0.5


def test_what_is_not_finite_must_be_the_same() -> None:
    output = np.array([[1.0, np.inf], [np.nan, 2.0]])
    dataset, original = rows(output)
    assert METRICS["sqnr"].evaluate(original, dataset, original) == math.inf
    for row, column, value in [(0, 0, np.nan), (0, 1, 5.0), (0, 1, -np.inf), (1, 0, 0.0)]:
        wrong = output.copy()
        wrong[row, column] = value
        _, other = rows(wrong)
        assert METRICS["sqnr"].evaluate(other, dataset, original) == -math.inf
        assert METRICS["sqnr"].drop(math.inf, -math.inf) == math.inf


def test_silence_is_matched_by_silence_only() -> None:
    dataset, silent = rows(np.zeros((3, 2)))
    _, loud = rows(np.ones((3, 2)))
    assert METRICS["mse"].evaluate(silent, dataset, silent) == 0.0
    assert METRICS["mse"].evaluate(loud, dataset, silent) == math.inf


def test_sizes_that_depend_on_the_data_must_agree() -> None:
    dataset = Dataset.from_arrays({"row": np.arange(4)})

    def boxes(count: int) -> Predict:
        return lambda batch: [np.ones((count, 4))]

    assert METRICS["mse"].evaluate(boxes(3), dataset, boxes(3)) == 0.0
    assert METRICS["mse"].evaluate(boxes(2), dataset, boxes(3)) == math.inf


@pytest.mark.parametrize(
    ("name", "baseline", "result", "drop"),
    [
        ("top1", 0.90, 0.89, 0.01),
        ("top1", 0.90, 0.91, -0.01),
        ("top5", 0.99, 0.97, 0.02),
        ("agreement", 1.0, 0.95, 0.05),
        ("mse", 0.0, 0.01, 0.01),
        ("sqnr", math.inf, 20.0, 0.01),
        ("sqnr", math.inf, math.inf, 0.0),
        ("top1", 0.9, math.nan, math.inf),
        ("mse", 0.0, math.nan, math.inf),
    ],
)
def test_drop(name: str, baseline: float, result: float, drop: float) -> None:
    assert METRICS[name].drop(baseline, result) == pytest.approx(drop)


def test_the_original_has_the_ideal_value() -> None:
    dataset, original = rows(SCORES)
    for metric in METRICS.values():
        if metric.relative:
            value = metric.evaluate(original, dataset, original)
            assert value == metric.ideal
            assert metric.drop(value, value) == 0


def test_every_metric_says_what_it_is() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert "drop:" in metric.about
        assert metric.relative == (metric.ideal is not None)
        assert not (metric.relative and metric.needs_labels)


def test_a_reference_runs_the_original_once() -> None:
    dataset, predict = rows(SCORES)
    calls = []

    def original(batch: Batch) -> Outputs:
        calls.append(len(batch["row"]))
        return predict(batch)

    reference = Reference(original, dataset, batch_size=30)
    for _ in range(3):
        assert METRICS["agreement"].evaluate(predict, dataset, reference, batch_size=7) == 1.0
    assert calls == [30, 30, 30, 10]


def test_a_reference_keeps_no_more_than_it_may() -> None:
    dataset, predict = rows(SCORES)
    calls = []

    def original(batch: Batch) -> Outputs:
        calls.append(int(batch["row"][0]))
        return predict(batch)

    reference = Reference(original, dataset, batch_size=25, kept_bytes=2 * 25 * 10 * 4)
    for _ in range(2):
        METRICS["sqnr"].evaluate(predict, dataset, reference)
    assert calls == [0, 25, 50, 75, 50, 75]


def test_a_kept_output_survives_a_model_that_reuses_its_memory() -> None:
    dataset, predict = rows(SCORES)
    buffer = np.zeros((50, 10), np.float32)

    def original(batch: Batch) -> Outputs:
        buffer[:] = predict(batch)[0]
        return [buffer]

    reference = Reference(original, dataset, batch_size=50)
    for _ in range(2):
        assert METRICS["sqnr"].evaluate(predict, dataset, reference) == math.inf


def test_a_reference_of_other_data_is_refused() -> None:
    dataset, predict = rows(SCORES)
    with pytest.raises(DataError, match="one of the same data set"):
        METRICS["sqnr"].evaluate(predict, dataset.take(5), Reference(predict, dataset))
    with pytest.raises(DataError, match="compares with the original"):
        METRICS["sqnr"].evaluate(predict, dataset)


def test_labels_follow_rows_where_a_fixed_batch_drops_the_tail() -> None:
    _, predict = rows(SCORES)
    inputs = [InputSpec("row", (30,), np.dtype(np.int64))]
    dataset = labelled(100, BEST).bind(inputs)
    assert METRICS["top1"].evaluate(predict, dataset) == 1.0
    assert METRICS["top1"].evaluate(predict, dataset.select(np.arange(100)[::-1])) == 1.0


@pytest.mark.parametrize(
    ("output", "scored"),
    [
        (np.zeros((4, 10), np.float32), True),
        (np.zeros((4, 10, 1, 1), np.float16), True),
        (np.zeros((4, 10), ml_dtypes.bfloat16), True),
        (np.zeros((4, 1), np.float32), False),
        (np.zeros((4, 10), np.int64), False),
        (np.zeros(4, np.float32), False),
        (np.zeros((4, 10, 2), np.float32), False),
    ],
)
def test_the_default_metric(output: np.ndarray, *, scored: bool) -> None:
    assert (class_scores(output) is not None) == scored
    expected = ("top1", "agreement") if scored else ("sqnr", "sqnr")
    assert choose(None, has_labels=True, outputs=[output]).name == expected[0]
    assert choose(None, has_labels=False, outputs=[output]).name == expected[1]


def test_choices_that_cannot_be_measured_are_refused() -> None:
    dense = [np.zeros((2, 3, 4, 4), np.float32)]
    with pytest.raises(RecipeError, match=r"'top-1' is neither .*did you mean 'top1'"):
        choose("top-1", has_labels=True, outputs=[SCORES])
    with pytest.raises(DataError, match="top1: the data has no labels"):
        choose("top1", has_labels=False, outputs=[SCORES])
    with pytest.raises(DataError, match=r"agreement: the first output must be scores"):
        choose("agreement", has_labels=False, outputs=dense)
    assert choose("mse", has_labels=True, outputs=dense) is METRICS["mse"]


@pytest.mark.parametrize(
    ("name", "scores", "labels", "message"),
    [
        ("top1", SCORES, np.full(100, 10), "labels must be 0 to 9, .*found 10"),
        ("top1", SCORES, np.full(100, -1), "found -1"),
        ("top5", SCORES[:, :5], np.zeros(100, int), "of 5 classes all are among the best 5"),
        ("top1", SCORES[:, :1], np.zeros(100, int), "must be scores"),
        ("top1", SCORES, None, "has no labels"),
    ],
)
def test_labels_and_scores_must_fit(
    name: str, scores: np.ndarray, labels: np.ndarray | None, message: str
) -> None:
    dataset, predict = rows(scores)
    data = dataset if labels is None else labelled(100, labels)
    with pytest.raises(DataError, match=message):
        METRICS[name].evaluate(predict, data)


def test_rows_must_match_inputs() -> None:
    with pytest.raises(DataError, match="gave 1 rows for 32 inputs"):
        METRICS["top1"].evaluate(lambda batch: [SCORES[:1]], labelled(100, BEST))


def user_metric(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(f"def score(outputs, labels):\n    {body}\n")
    return f"{folder / 'mine.py'}:score"


def test_a_metric_of_the_user_sees_all_outputs(tmp_path: Path) -> None:
    text = user_metric(tmp_path, "return (outputs[0].argmax(1) == labels).mean()")
    metric = choose(text, has_labels=True, outputs=[SCORES])
    _, predict = rows(SCORES)
    assert metric.evaluate(predict, labelled(100, BEST), batch_size=33) == 1.0
    assert metric.drop(0.9, 0.8) == pytest.approx(0.1)
    assert metric.higher_is_better
    assert metric.name == text


def test_a_metric_of_the_user_may_do_without_labels(tmp_path: Path) -> None:
    text = user_metric(tmp_path, "return -1 if labels is not None else len(outputs[0])")
    dataset, predict = rows(SCORES)
    assert choose(text, has_labels=False, outputs=[SCORES]).evaluate(predict, dataset) == 100


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return outputs[1]", r"mine\.py:score raised IndexError.*line 2"),
        ("return None", "must return a number, got NoneType"),
        ("return 'good'", "must return a number, got str"),
        ("return outputs[0]", "must return a number, got ndarray"),
    ],
)
def test_a_faulty_metric_of_the_user_is_named(tmp_path: Path, body: str, message: str) -> None:
    metric = choose(user_metric(tmp_path, body), has_labels=False, outputs=[SCORES])
    dataset, predict = rows(SCORES)
    with pytest.raises(DataError, match=message):
        metric.evaluate(predict, dataset)


def test_a_missing_metric_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^metric: there is no file"):
        choose(f"{tmp_path}/none.py:score", has_labels=False, outputs=[SCORES])


def test_a_metric_of_the_user_needs_outputs_of_one_shape(tmp_path: Path) -> None:
    metric = choose(user_metric(tmp_path, "return 1"), has_labels=False, outputs=[SCORES])
    dataset = Dataset.from_arrays({"row": np.arange(4)})

    def growing(batch: Batch) -> Outputs:
        return [np.zeros((1, 1 + int(batch["row"][0])))]

    with pytest.raises(DataError, match="batches differ"):
        metric.evaluate(growing, dataset, batch_size=1)
