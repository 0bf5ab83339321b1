"""Tasks read fixed splits, learn by seed, and export to ONNX; the committed network is good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_digits
from torch import nn

from models.networks import NETWORKS
from models.tasks import TASKS, Examples, Schedule, augmented, fit, top1, torch_logits
from models.train import export, main, onnx_logits

COMMITTED = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def held_out() -> Examples:
    return TASKS["digits"].examples("test")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny() -> nn.Module:
    """Build a network that learns digits in a few epochs."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 4, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 10),
    )


def test_digits_split_is_every_fifth_row(held_out: Examples) -> None:
    digits = load_digits()
    train = TASKS["digits"].examples("train")
    assert (len(train), len(held_out)) == (1437, 360)
    assert np.array_equal(held_out.labels, digits.target[::5])
    assert np.array_equal(held_out.images[:, 0, ::4, ::4], digits.images[::5].astype("f") / 16)


def test_digits_repeat_pixels(held_out: Examples) -> None:
    assert held_out.images.shape[1:] == TASKS["digits"].shape
    assert held_out.images.dtype == np.float32
    small = held_out.images[:, :, ::4, ::4]
    assert np.array_equal(held_out.images, np.kron(small, np.ones((4, 4), np.float32)))


def test_official_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "cifar-10-batches-bin").mkdir()
    grey = rng.integers(0, 256, (3, 28, 28), np.uint8)
    header = np.array([0x803, 3, 28, 28], ">u4").tobytes()
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte").write_bytes(header + grey.tobytes())
    header = np.array([0x801, 3], ">u4").tobytes()
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(header + bytes([7, 0, 9]))
    colour = rng.integers(0, 256, (2, 3, 32, 32), np.uint8)
    records = b"".join(
        bytes([label]) + image.tobytes() for label, image in zip((4, 9), colour, strict=True)
    )
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(records)

    mnist, cifar = TASKS["mnist"].examples("test"), TASKS["cifar10"].examples("test")

    assert mnist.labels.tolist() == [7, 0, 9]
    np.testing.assert_allclose(mnist.images, grey[:, None] / np.float32(255), rtol=1e-6)
    assert cifar.labels.tolist() == [4, 9]
    mean, deviation = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    expected = (colour / 255 - mean[:, None, None]) / deviation[:, None, None]
    np.testing.assert_allclose(cifar.images, expected, atol=1e-6)


def test_fit_learns_and_repeats(held_out: Examples) -> None:
    digits = TASKS["digits"]
    schedule = replace(digits.schedule, epochs=3, shift=1)
    train = digits.examples("train")

    def run(seed: int) -> tuple[list[int], bytes]:
        network, epochs = tiny(), list[int]()
        fit(network, train, schedule, seed=seed, progress=lambda epoch, _: epochs.append(epoch))
        assert not network.training
        logits = torch_logits(network, held_out)
        assert top1(logits, held_out.labels) > 0.85
        return epochs, logits.tobytes()

    first, again, other = run(0), run(0), run(1)
    assert first[0] == [1, 2, 3]
    assert first == again
    assert first[1] != other[1]


def test_augmented_shifts_and_mirrors() -> None:
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    rows = image.repeat(200, 1, 1, 1)
    draws = torch.Generator().manual_seed(0)
    seen = {tuple(x.flatten().tolist()) for x in augmented(rows, Schedule(1, shift=1), draws)}
    padded = nn.functional.pad(image, [1] * 4)
    shifts = {
        tuple(padded[0, 0, y : y + 3, x : x + 3].flatten().tolist())
        for y in range(3)
        for x in range(3)
    }
    assert seen == shifts
    flips = augmented(rows, Schedule(1, mirror=True), draws)
    mirrored = sum(torch.equal(flip, image.flip(3)[0]) for flip in flips)
    unchanged = sum(torch.equal(flip, image[0]) for flip in flips)
    assert mirrored + unchanged == 200
    assert 60 < mirrored < 140


def test_top1() -> None:
    logits = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], np.float32)
    assert top1(logits, np.array([1, 0, 0, 0])) == 0.75


def test_export_keeps_outputs_names_and_batch_norm(tmp_path: Path, held_out: Examples) -> None:
    network = tiny()
    fit(network, held_out.take(64), Schedule(1))
    export(network, (1, 32, 32), tmp_path / "tiny.onnx")
    some = held_out.take(5)
    in_onnx = onnx_logits(tmp_path / "tiny.onnx", some, batch_size=2)
    np.testing.assert_allclose(in_onnx, torch_logits(network, some), atol=1e-5)
    model = onnx.load(tmp_path / "tiny.onnx")
    assert "BatchNormalization" in {node.op_type for node in model.graph.node}
    names = {tensor.name for tensor in model.graph.initializer}
    assert {key for key in network.state_dict() if "num_batches" not in key} <= names
    assert_anonymous(tmp_path / "tiny.onnx")


def assert_anonymous(path: Path) -> None:
    """Check that no note of the exporter, such as a stack trace, is left."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    text = str(model)
    assert not [note for note in ("metadata_props", "doc_string", ".py") if note in text]


def test_command_refuses_a_network_for_other_images(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["resnet-20", "digits", str(tmp_path / "x.onnx")])
    assert result.exit_code == 2
    assert "takes images of (3, 32, 32)" in result.output
    assert not (tmp_path / "x.onnx").exists()


def test_committed_network_is_accurate(held_out: Examples) -> None:
    accuracy = top1(onnx_logits(COMMITTED, held_out), held_out.labels)
    assert accuracy > 0.98


def test_committed_network_is_small_and_plain() -> None:
    assert COMMITTED.stat().st_size < 1_500_000
    model = onnx.load(COMMITTED)
    operators = Counter(node.op_type for node in model.graph.node)
    assert set(operators) == {"Add", "BatchNormalization", "Conv", "Gemm", "ReduceMean", "Relu"}
    assert operators["Conv"] == operators["BatchNormalization"] == 17
    assert [(value.name, _sizes(value)) for value in model.graph.input] == [
        ("image", ["N", 1, 32, 32])
    ]
    assert [(value.name, _sizes(value)) for value in model.graph.output] == [("logits", ["N", 10])]


def test_committed_network_tells_nothing_of_the_machine() -> None:
    assert_anonymous(COMMITTED)


def _sizes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_committed_network_matches_the_reference() -> None:
    with torch.device("meta"):
        keys = NETWORKS["digits-resnet"].build().state_dict()
    names = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(COMMITTED).graph.initializer}
    for key, value in keys.items():
        if not key.endswith("num_batches_tracked"):
            assert names[key] == tuple(value.shape)
