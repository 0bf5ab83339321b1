"""A network exported for one batch size learns just what its twin for any size learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.train import CrossEntropy, distill, finetune
from graphopt.train.opening import open_batch
from tests.asserting import parse
from tests.train.networks import ALONE, QUICK, disturbed, images

TEXT = """net (float[{n},3,8,8] x) => (float[{n},5] y)
<float[4,3,3,3] w0, float[4] s, float[4] b, float[4] m, float[4] v = {{1,1,1,1}},
 float[64,5] w1, int64[2] shape = {{{first},-1}}> {{
    c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w0)
    n = BatchNormalization(c, s, b, m, v)
    r = Relu(n)
    f = Reshape(r, shape)
    y = MatMul(f, w1)
}}"""


def network(size: int | None) -> Graph:
    fixed = {"n": "N", "first": 0} if size is None else {"n": size, "first": size}
    return Graph.load(parse(TEXT.format(**fixed)))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("labels", [True, False])
def test_any_batch_is_trained_on(size: int, *, labels: bool) -> None:
    x = next(images(96).batches(96))["x"]
    data = Dataset.from_arrays({"x": x}, np.arange(96) % 5 if labels else None)
    made = []
    for each in (None, size):
        teacher = network(each)
        graph = disturbed(teacher)
        if labels:
            history = finetune(graph, data, CrossEntropy(), QUICK, resources=ALONE)
        else:
            history = distill(graph, teacher, data, QUICK, resources=ALONE)
        assert history.batch == 16
        assert graph.shape("x") == teacher.shape("x")
        made.append(graph.constants())
    for name, array in made[0].items():
        if name != "shape":
            np.testing.assert_array_equal(array, made[1][name], err_msg=name)


@pytest.mark.parametrize(
    "body",
    [
        "a = ReduceMean<axes=[0]>(x) y = Add(x, a)",  # rows that are mixed
        "e = Expand(one, two) y = Add(x, e)",  # a size that is written elsewhere
        "s = Reshape(x, two) y = Softmax<axis=0>(s)",  # a softmax over rows
    ],
)
def test_networks_whose_rows_are_not_alike_keep_their_batch(body: str) -> None:
    text = (
        f"p (float[2,6] x) => (float[2,6] y) <int64[2] two = {{2,6}}, float[1,6] one> {{ {body} }}"
    )
    data = Dataset.from_arrays(
        {"x": np.random.default_rng(0).standard_normal((32, 6)).astype(np.float32)}
    )
    graph = Graph.load(parse(text))
    assert open_batch(graph, data) is graph


def test_sizes_that_are_not_declared_and_reshapes_by_attribute_are_no_obstacle() -> None:
    old = Graph.load(
        parse("""p (float[2,6] x) => (float[2,6] y) { y = Reshape<shape=[2,6]>(x) }""", opset=1)
    )
    data = Dataset.from_arrays({"x": np.zeros((8, 6), np.float32)})
    assert open_batch(old, data) is old
    unknown = Graph.load(parse("p (float[2,6] x, float z) => (float[2,6] y) { y = Add(x, z) }"))
    data = Dataset.from_arrays({"x": np.zeros((8, 6), np.float32), "z": np.zeros(8, np.float32)})
    assert open_batch(unknown, data).inputs == ("x", "z")


def test_networks_for_any_batch_and_too_few_rows_stay_as_they_are() -> None:
    graph = network(None)
    assert open_batch(graph, images(32)) is graph
    graph = network(3)
    assert open_batch(graph, images(5)) is graph


def test_a_teacher_that_cannot_be_opened_keeps_the_student_s_batch() -> None:
    student = network(3)
    text = TEXT.replace(
        "y = MatMul(f, w1)", "z = MatMul(f, w1) a = ReduceMean<axes=[0]>(z) y = Add(z, a)"
    )
    teacher = Graph.load(parse(text.format(n=3, first=3)))
    history = distill(student, teacher, images(96), replace(QUICK, epochs=1), resources=ALONE)
    assert history.batch == 3
