"""What data and networks a training takes, and what it says to those it cannot take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graphopt.data import Dataset, InputSpec
from graphopt.data.arrays import ArraySource
from graphopt.errors import DataError, ModelError, RecipeError, UnsupportedOp
from graphopt.ir import Graph
from graphopt.lens import lower
from graphopt.train import (
    Batch,
    CrossEntropy,
    Guided,
    History,
    Outputs,
    SquaredError,
    distill,
    find_device,
    finetune,
    fit,
    objective_of,
    recover,
)
from graphopt.train.formats import Format
from graphopt.train.preparing import fastest_format
from graphopt.train.snapshots import copied
from tests.asserting import parse
from tests.train.networks import ALONE, QUICK, disturbed, images, perceptron, small, vectors


def relabelled(labels: list[int]) -> Dataset:
    batch = next(vectors(len(labels)).batches(len(labels)))
    return Dataset.from_arrays(batch, labels=labels)


# ---- bad input -----------------------------------------------------------------------------


def test_labels_out_of_range_name_row_and_classes() -> None:
    labels = [0, 1, 2, 3] * 10
    labels[17] = 4
    with pytest.raises(DataError, match=r"0 to 3, the model has 4 classes; row 17 of arrays has 4"):
        finetune(perceptron(), relabelled(labels), CrossEntropy(), QUICK, resources=ALONE)


def test_data_that_do_not_fit_are_named_however_they_come_in() -> None:
    wrong = Dataset.from_arrays({"picture": np.zeros((8, 3, 8, 8), np.float32)}, labels=[0] * 8)
    says = "has an array 'picture', which is no input of the model"
    with pytest.raises(DataError, match=says):
        distill(small(), small(), wrong, QUICK, resources=ALONE)
    with pytest.raises(DataError, match=says):
        finetune(small(), wrong, CrossEntropy(), QUICK, resources=ALONE)
    with pytest.raises(DataError, match=says):
        fit(small(), wrong, CrossEntropy(), QUICK, resources=ALONE)


def test_labels_are_needed_to_finetune() -> None:
    with pytest.raises(DataError, match=r"arrays has no labels; .*use distill"):
        finetune(small(), images(), CrossEntropy(), QUICK, resources=ALONE)


def test_losses_of_labels_need_some() -> None:
    with pytest.raises(DataError, match="this loss needs labels, and the data have none"):
        fit(small(), images(), CrossEntropy(), QUICK, resources=ALONE)


def test_dropout_draws_from_the_seed_and_leaves_torch_s_own_generator_alone() -> None:
    text = """d (float[N,6] x) => (float[N,4] y) <float[6,4] w, float ratio> {
        a = MatMul(x, w)
        y = Dropout(a, ratio)
    }"""
    made = []
    for seed in (0, 0, 1):
        graph = Graph.load(parse(text))
        assert "Dropout" in {node.op for node in graph.nodes}
        torch.manual_seed(seed + 7)
        before = torch.random.get_rng_state()
        finetune(graph, vectors(), CrossEntropy(), QUICK, resources=replace(ALONE, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        made.append(graph.content_hash())
    assert made[0] == made[1] != made[2]


def test_fewer_rows_than_a_batch_make_a_smaller_batch() -> None:
    history = finetune(
        perceptron(), vectors(12), CrossEntropy(), replace(QUICK, batch=512), resources=ALONE
    )
    assert (history.batch, history.steps) == (12, 4)


def test_fewer_rows_than_a_fixed_batch_are_refused() -> None:
    graph = Graph.load(
        parse("p (float[32,6] x) => (float[32,4] y) <float[6,4] w> {y = MatMul(x, w)}")
    )
    data = replace(vectors(20), fixed_batch=32)
    with pytest.raises(DataError, match="exactly 32 rows at a time, arrays has 20"):
        distill(graph, graph.clone(), data, QUICK, resources=ALONE)


def test_cuda_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="device cuda: torch finds no CUDA device"):
        fit(perceptron(), vectors(), CrossEntropy(), QUICK, resources=replace(ALONE, device="cuda"))
    assert find_device("auto") == "cpu"


def test_a_network_without_weights_is_refused() -> None:
    graph = Graph.load(parse("p (float[N,6] x) => (float[N,6] y) { y = Relu(x) }"))
    with pytest.raises(ModelError, match="no weights that could be trained"):
        fit(graph, vectors(), CrossEntropy(), QUICK, resources=ALONE)


def test_half_precision_weights_are_refused() -> None:
    text = "p (float16[N,6] x) => (float16[N,4] y) <float16[6,4] w> { y = MatMul(x, w) }"
    with pytest.raises(ModelError, match=r"'w' is float16; train before narrowing"):
        fit(Graph.load(parse(text)), vectors(), CrossEntropy(), QUICK, resources=ALONE)


def test_an_operator_without_lowering_is_named() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "my" : 1]>
    p (float[N,6] x) => (float[N,4] y) <float[6,4] w> {
        a = my.Mystery(x)
        y = MatMul(a, w)
    }"""
    with pytest.raises(UnsupportedOp, match="Mystery"):
        fit(Graph.load(parse(text)), vectors(), CrossEntropy(), QUICK, resources=ALONE)


def test_images_are_needed_to_vary_them() -> None:
    plan = replace(QUICK, augment=("crop",))
    with pytest.raises(RecipeError, match=r"crop takes images, .* inputs are \(1, 6\)"):
        fit(perceptron(), vectors(), CrossEntropy(), plan, resources=ALONE)


def test_a_shift_is_not_ignored_where_there_are_no_images() -> None:
    plan = replace(QUICK, augment=("auto",), shift=1)
    with pytest.raises(RecipeError, match="crop takes images"):
        fit(perceptron(), vectors(), CrossEntropy(), plan, resources=ALONE)


def test_images_are_not_shifted_out_of_sight() -> None:
    plan = replace(QUICK, augment=("crop",), shift=40)
    with pytest.raises(RecipeError, match=r"shift=40 leaves nothing of images of \d+x\d+; give"):
        fit(small(), images(), CrossEntropy(), plan, resources=ALONE)


def test_auto_varies_images_only() -> None:
    plan = replace(QUICK, augment=("auto",))
    finetune(perceptron(), vectors(), CrossEntropy(), plan, resources=ALONE)
    distill(disturbed(small()), small(), images(), plan, resources=ALONE)


def test_a_loss_that_no_weight_moves_is_refused() -> None:
    def constant(outputs: Outputs, batch: Batch) -> torch.Tensor:
        return torch.zeros((), requires_grad=True)

    with pytest.raises(ModelError, match="depends on none of the network's weights"):
        fit(perceptron(), vectors(), constant, QUICK, resources=ALONE)


# ---- losses --------------------------------------------------------------------------------


def user_file(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(f"import torch\ndef loss(outputs, labels):\n    {body}\n")
    return f"{path}:loss"


def test_a_function_of_the_user_s_is_minimised(tmp_path: Path) -> None:
    body = "return torch.nn.functional.cross_entropy(outputs[0], labels)"
    named, own = perceptron(), perceptron()
    finetune(named, vectors(), objective_of("cross-entropy"), QUICK, resources=ALONE)
    finetune(own, vectors(), objective_of(user_file(tmp_path, body)), QUICK, resources=ALONE)
    assert named.content_hash() == own.content_hash()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1.0", "must return a tensor of one number, got float"),
        ("return outputs[0]", r"must return a tensor of one number, got \(16, 4\)"),
        ("return torch.tensor(1.0)", "a number without a gradient"),
        ("return labels.nothing", r"raised AttributeError: .*line 3"),
    ],
)
def test_faults_of_the_user_s_function_are_named(tmp_path: Path, body: str, said: str) -> None:
    objective = objective_of(user_file(tmp_path, body))
    with pytest.raises(DataError, match=said):
        finetune(perceptron(), vectors(), objective, QUICK, resources=ALONE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "p (float[N,6] x) => (float[N,1] y) <float[6,1] w> { y = MatMul(x, w) }",
            r"\(1, 1\) of float",
        ),
        (
            """p (float[N,6] x) => (float[N,2,3] y) <int64[3] s = {0,2,3}, float[6,6] w> {
                a = MatMul(x, w) y = Reshape(a, s)
            }""",
            r"\(1, 2, 3\) of float",
        ),
    ],
)
def test_cross_entropy_needs_scores_of_classes(text: str, said: str) -> None:
    data = relabelled([0] * 128)
    graph = Graph.load(parse(text))
    with pytest.raises(DataError, match=said):
        finetune(graph.clone(), data, CrossEntropy(), QUICK, resources=ALONE)
    history = recover(disturbed(graph), graph, data, Guided(**vars(QUICK)), resources=ALONE)
    assert history.curve[-1].held_out < history.curve[0].held_out  # type: ignore[operator]


def test_scores_may_have_other_axes_of_size_1() -> None:
    text = """p (float[N,6] x) => (float[N,1,4] y) <float[6,4] w, int64[3] s = {0,1,4}> {
        a = MatMul(x, w) y = Reshape(a, s)
    }"""
    graph = Graph.load(parse(text))
    assert finetune(graph, vectors(), CrossEntropy(), QUICK, resources=ALONE).steps
    with pytest.raises(DataError, match="row 3 of arrays has 4"):
        finetune(graph, relabelled([0, 1, 2, 4] * 8), objective_of("mse"), QUICK, resources=ALONE)


def test_unknown_losses_are_refused() -> None:
    with pytest.raises(RecipeError, match="'hinge' is neither cross-entropy nor mse nor file"):
        objective_of("hinge")


def test_losses_by_hand() -> None:
    scores = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    batch = Batch((scores,), labels=torch.tensor([1, 0]))
    entropy = (np.log(1 + np.exp(-2)) + np.log(2)) / 2
    assert float(CrossEntropy()((scores,), batch)) == pytest.approx(entropy)
    assert float(SquaredError()((scores,), batch)) == pytest.approx((1 + 4 + 1 + 4) / 4)
    assert float(SquaredError()((scores[:, :1],), batch)) == pytest.approx((0 + 4) / 2)


# ---- kinds of data and networks ------------------------------------------------------------


def test_data_too_large_for_memory_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(QUICK, augment=("flip", "crop", "mixup"))
    made = []
    for share in (0.25, 0.0):
        monkeypatch.setattr("graphopt.train.rows._SHARE", share)
        graph = disturbed(small())
        distill(graph, small(), images(), plan, resources=ALONE)
        made.append(graph.content_hash())
    assert made[0] == made[1]


def test_inputs_whose_rows_are_inside_and_one_without_rows() -> None:
    text = """p (float[N,6] x, float[2,N,3] s, float[3] w) => (float[N,3] y)
    <float[6,3] m, int64[1] axis> {
        a = MatMul(x, m)
        b = ReduceSum<keepdims=0>(s, axis)
        c = Add(a, b)
        y = Mul(c, w)
    }"""
    teacher = Graph.load(parse(text))
    teacher.set_constant("axis", np.array([0]))
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(size).astype(np.float32)
        for name, size in (("x", (100, 6)), ("s", (2, 100, 3)), ("w", (3,)))
    }
    specs = [InputSpec(name, teacher.shape(name), np.dtype(np.float32)) for name in teacher.inputs]
    source = ArraySource.of(arrays, None, where="arrays", inputs=specs)
    graph = disturbed(teacher)
    history = distill(graph, teacher, Dataset.of(source, "arrays"), QUICK, resources=ALONE)
    held = [point.held_out for point in history.curve if point.held_out is not None]
    assert held[-1] < 0.5 * held[0]


def test_a_fixed_batch_is_kept() -> None:
    """Of a network that does not treat rows alike."""
    text = """p (float[8,6] x) => (float[8,4] y) <float[6,4] w> {
        a = MatMul(x, w)
        m = ReduceMean<axes=[0]>(a)
        y = Sub(a, m)
    }"""
    teacher = Graph.load(parse(text))
    graph = disturbed(teacher)
    history = distill(graph, teacher, replace(vectors(85), fixed_batch=8), QUICK, resources=ALONE)
    assert (history.batch, history.steps) == (8, 4 * 8)  # of 10 batches 2 are held out


def test_batch_statistics_are_learnt_and_kept() -> None:
    text = """b (float[N,3,8,8] x) => (float[N,4] y)
    <float[4,3,1,1] w, float[4] s, float[4] h, float[4] m, float[4] var, float[4] unused> {
        a = Conv(x, w)
        n = BatchNormalization(a, s, h, m, var)
        p = GlobalAveragePool(n)
        y = Flatten(p)
    }"""
    teacher = Graph.load(parse(text))
    graph = disturbed(teacher)
    history = distill(graph, teacher, images(), QUICK, resources=ALONE)
    assert {"w", "s", "h", "m", "var"} <= set(history.changed)
    held = [point.held_out for point in history.curve if point.held_out is not None]
    assert min(held) < 0.8 * held[0]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_narrow_numbers_leave_float32_weights(layout: str) -> None:
    teacher = small()
    graph = disturbed(teacher)
    plan = replace(QUICK, precision="bf16", layout=layout, epochs=8)  # type: ignore[arg-type]
    history = distill(graph, teacher, images(), plan, resources=ALONE)
    assert history.format == f"bf16, {layout}"
    for array in graph.constants().values():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    first, last = history.curve[0].held_out, history.curve[-1].held_out
    assert first is not None
    assert last is not None
    assert last < 0.5 * first


def test_timing_formats_computes_as_a_training_does_and_changes_nothing() -> None:
    text = """b (float[N,3,8,8] x) => (float[N,4] y)
    <float[4,3,1,1] w, float[4] s = {1,1,1,1}, float[4] b = {0,0,0,0},
     float[4] m = {0,0,0,0}, float[4] v = {1,1,1,1}> {
        c = Conv(x, w)
        n = BatchNormalization(c, s, b, m, v)
        p = GlobalAveragePool(n)
        y = Flatten(p)
    }"""
    module = lower(Graph.load(parse(text)))
    before = copied(module)
    batch = Batch((torch.randn(8, 3, 8, 8),), labels=torch.arange(8) % 4)
    modes = []

    def loss(outputs: Outputs, batch: Batch) -> torch.Tensor:
        modes.append(module.training)
        return CrossEntropy()(outputs, batch)

    fastest_format(module, loss, batch, [Format(bf16=False, channels_last=True)], History())
    assert modes == [True]
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_fastest_format_is_taken() -> None:
    plan = replace(QUICK, precision="auto", layout="auto", epochs=1)
    history = distill(disturbed(small()), small(), images(), plan, resources=ALONE)
    assert len(history.timed) == 4
    assert history.format == min(history.timed, key=lambda name: history.timed[name])


def test_double_precision_is_kept() -> None:
    text = "p (double[N,6] x) => (double[N,4] y) <double[6,4] w> { y = MatMul(x, w) }"
    teacher = Graph.load(parse(text))
    graph = teacher.clone()
    graph.set_constant("w", 0.5 * teacher.constants()["w"].astype(np.float64))
    x = np.random.default_rng(0).standard_normal((64, 6))
    distill(
        graph, teacher, Dataset.from_arrays({"x": x}), replace(QUICK, epochs=20), resources=ALONE
    )
    assert graph.constants()["w"].dtype == np.float64
    old, new = (each.constants()["w"].astype(np.float64) for each in (teacher, graph))
    # The same may be added to the scores of all classes.
    apart = (new - old) - (new - old).mean(1, keepdims=True)
    assert np.abs(apart).max() < 0.1 * np.abs(old).max()
