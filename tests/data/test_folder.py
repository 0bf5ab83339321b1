"""Folders of image files: order, labels, fitting, and files that are no images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graphopt import data
from graphopt.data import InputSpec
from graphopt.data.folder import FolderStore
from graphopt.data.pixels import Frame
from graphopt.errors import DataError

RGB8 = InputSpec("x", ("N", 3, 8, 8), np.dtype(np.float32))


def picture(path: Path, value: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for value, name in enumerate(["b/1.png", "b/2.PNG", "a/x.jpg", "a/deep/y.bmp", "c/z.png"]):
        picture(tmp_path / name, 50 * value)
    (tmp_path / "a/notes.txt").write_text("no image")
    picture(tmp_path / "a/.hidden.png")
    picture(tmp_path / ".cache/q.png")
    return tmp_path


def test_class_folders_give_labels_in_the_order_of_names(classes: Path) -> None:
    dataset = data.open(classes, [RGB8], preprocess="raw")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2]
    (batch,) = dataset.batches(8)
    np.testing.assert_allclose(batch["x"][:, 0, 0, 0], [100, 150, 0, 50, 200], atol=2)


def test_loose_images_have_no_labels(tmp_path: Path) -> None:
    for value, name in enumerate(["10.png", "9.png", "a.png"]):
        picture(tmp_path / name, 100 * value)
    dataset = data.open(f"{tmp_path}[:2]", [RGB8], preprocess="raw")
    assert dataset.labels is None
    assert next(dataset.batches(8))["x"][:, 0, 0, 0].tolist() == [0, 100]


def test_a_limit_draws_from_all_classes(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / f"{number // 20}" / f"{number:02}.png")
    drawn = data.open(f"{tmp_path}[:10]", [RGB8], seed=3)
    assert drawn.labels is not None
    assert 2 < drawn.labels.sum() < 8
    again = data.open(f"{tmp_path}[:10]", [RGB8], seed=3)
    assert again.fingerprint() == drawn.fingerprint()
    assert data.open(f"{tmp_path}[:10]", [RGB8], seed=4).fingerprint() != drawn.fingerprint()


def test_images_are_decoded_only_when_asked_for(classes: Path) -> None:
    (classes / "c/z.png").write_bytes(b"broken")
    batches = data.open(classes, [RGB8]).batches(2)
    assert len(next(batches)["x"]) == 2
    assert len(next(batches)["x"]) == 2
    with pytest.raises(DataError, match=r"z\.png cannot be read as an image"):
        next(batches)


def test_the_default_is_imagenet_at_224(classes: Path) -> None:
    inputs = [InputSpec("x", ("N", 3, "H", "W"), np.dtype(np.float32))]
    batch = next(data.open(classes, inputs).select([2]).batches(1))["x"]
    assert batch.shape == (1, 3, 224, 224)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(batch[0, :, 0, 0], -mean / std, rtol=1e-5)


def test_one_channel_gets_gray_images(classes: Path) -> None:
    inputs = [InputSpec("x", ("N", 1, 8, 8), np.dtype(np.float32))]
    batch = next(data.open(classes, inputs).batches(9))["x"]
    assert batch.shape == (5, 1, 8, 8)
    np.testing.assert_allclose(batch[:, 0, 0, 0] * 255, [100, 150, 0, 50, 200], atol=2)


def loaded(path: Path, frame: Frame) -> np.ndarray:
    pixels = FolderStore((path,), None).pixels(np.array([0]), frame)
    assert len(pixels) == 1
    return pixels.reshape(pixels.shape[1:])


def test_an_image_of_the_right_size_is_kept_bit_for_bit(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(loaded(tmp_path / "a.png", Frame(20, 30, 3, 256 / 224)), pixels)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (300, 300), (100, 90)])
def test_other_sizes_are_resized_to_cover_256_and_cropped_to_224(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    short = min(size)
    whole = image.resize(
        (256 * size[0] // short, 256 * size[1] // short), Image.Resampling.BILINEAR
    )
    left, top = round((whole.width - 224) / 2), round((whole.height - 224) / 2)
    expected = np.asarray(whole)[top : top + 224, left : left + 224]
    found = loaded(tmp_path / "a.png", Frame(224, 224, 3, 256 / 224))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 700)])
@pytest.mark.parametrize("frame", [Frame(8, 8, 3), Frame(8, 64, 3, 1.2), Frame(1, 9, 1)])
def test_odd_shapes_fill_the_frame(tmp_path: Path, size: tuple[int, int], frame: Frame) -> None:
    picture(tmp_path / "a.png", 77, size)
    found = loaded(tmp_path / "a.png", frame)
    assert found.shape == (frame.height, frame.width, frame.channels)
    assert np.unique(found).tolist() == [77]


def test_image_modes(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((8, 8), 40000, np.uint16))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 156, 156, 156])
    palette.info["transparency"] = b"\x00\xff"
    images = {
        "deep": deep,
        "palette": palette,
        "gray": Image.new("L", (8, 8), 156),
        "alpha": Image.new("RGBA", (8, 8), (156, 156, 156, 10)),
        "bits": Image.new("1", (8, 8), 1),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
        found = loaded(tmp_path / f"{name}.png", Frame(8, 8, 3))
        assert np.unique(found).tolist() == [255 if name == "bits" else 156], name


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"])
@pytest.mark.parametrize("cut", [0, 10, 40, 0.5])
def test_truncated_images_name_the_file(tmp_path: Path, suffix: str, cut: float) -> None:
    path = tmp_path / f"photo.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if cut < 1 else int(cut)])
    with pytest.raises(DataError, match=rf"photo\.{suffix} cannot be read as an image") as raised:
        next(data.open(tmp_path, [RGB8]).batches(1))
    assert "\n" not in str(raised.value)


def test_folders_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        data.open(tmp_path, [RGB8])
    picture(tmp_path / "train/a/1.png")
    picture(tmp_path / "val/a/1.png")
    with pytest.raises(DataError, match=r"train, val, which are parts.*give one of them"):
        data.open(tmp_path, [RGB8])
    picture(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"both images \(stray.png\) and folders"):
        data.open(tmp_path, [RGB8])


def test_a_vanished_file_is_named(classes: Path) -> None:
    dataset = data.open(classes, [RGB8])
    (classes / "c/z.png").unlink()
    with pytest.raises(DataError, match=r"z\.png cannot be read"):
        dataset.fingerprint()
    dataset.take(4).fingerprint()
