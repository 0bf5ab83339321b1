"""Channels on the command line: what inspect lists, and how requests that cannot be met end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.asserting import parse
from tests.cli.calling import Run
from tests.coupling.test_removal import CHAIN

PINNED = "held (float[2,3] x) => (float[2,6] y) <float[3,6] w> { y = MatMul(x, w) }"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(parse(CHAIN), path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    values = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    np.savez(path, x=values)
    return path


def _optimize(run: Run, model: Path, passes: str, *more: object) -> tuple[int, str]:
    code, out, err = run("optimize", model, "--no-bench", "--passes", passes, *more)
    return code, out + err


def test_inspect_lists_families_and_why_not(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, _ = run("inspect", model, "--json", tmp_path / "found.json")
    assert code == 0
    lines = out.splitlines()
    assert "w\t8\t3\t16,896\t272" in lines
    assert "u\toutput 'y'\tis what the caller gets\t4\t1\t24\t24" in lines
    found = json.loads((tmp_path / "found.json").read_text())["channels"]
    assert [family["name"] for family in found["families"]] == ["w", "v"]
    assert found["families"][0]["axes"] == {"w": [0], "b": [0], "v": [1]}
    held = {family["name"]: family["held_by"] for family in found["frozen"]}
    assert held == {"w#2": "input 'x'", "u": "output 'y'"}


def test_a_budget_out_of_reach_is_saved_and_reported(run: Run, model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    code, said = _optimize(run, model, "remove-channels{macs=0.01}", "--json", report)
    assert code == 1
    assert "not met: remove-channels: macs 0.01: the least" in said
    held = "'w#2', the largest that stays whole, is held by input 'x', which is what the caller"
    assert held in said
    found = json.loads(report.read_text())
    assert 0.01 < found["result"]["macs"] / found["baseline"]["macs"] < 0.2
    assert len(onnx.load(tmp_path / "net.opt.onnx").graph.initializer[0].dims) > 0


def test_a_refitted_budget_out_of_reach_names_what_holds(
    run: Run, model: Path, images: Path
) -> None:
    code, said = _optimize(run, model, "remove-and-refit{macs=0.01}", "--data", images)
    assert code == 1
    assert "not met: remove-and-refit: macs 0.01: the least that a cut can leave is 0." in said
    assert "is held by input 'x', which is what the caller gives" in said


@pytest.mark.parametrize("step", ["remove-channels", "remove-and-refit"])
def test_macs_that_nobody_can_count(run: Run, tmp_path: Path, images: Path, step: str) -> None:
    """Sizes that the model leaves open: no cut is made for a budget that cannot be measured."""
    path = tmp_path / "open.onnx"
    text = """open (float[N,3,H,W] x) => (float[N,6,H,W] y)
        <float[8,3,3,3] w, float[8] b, float[6,8,1,1] v> {
        a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv(r, v) }"""
    onnx.save(parse(text), path)
    code, out, _ = run("inspect", path)
    assert code == 0
    assert "MACs\tunknown" in out.splitlines()
    assert "w\t8\t3\tunknown\t272" in out.splitlines()
    code, said = _optimize(run, path, f"{step}{{macs=0.5}}", "--data", images)
    assert code == 1
    assert f"not met: {step}: macs: none can be counted" in said
    weights = onnx.load(path.with_name("open.opt.onnx")).graph.initializer
    assert sorted(list(weight.dims) for weight in weights) == [[6, 8, 1, 1], [8], [8, 3, 3, 3]]


def test_every_channel_pinned(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pinned.onnx"
    onnx.save(parse(PINNED), path)
    code, said = _optimize(run, path, "remove-channels")
    assert code == 1
    assert "no channel can go; 'w', the largest that stays whole, is held by input 'x'" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("ratio=1.5", "ratio must be between 0 and 1"),
        ("macs=0", "macs must be between 0 and 1"),
        ("ratio=0.5, macs=0.5", "give one of ratio and macs"),
        ("floor=1.0", "floor must be from 0 to below 1"),
        ("families=[nobody]", "there is no family 'nobody'"),
        ("families=[u]", "'u' is frozen: output 'y' is what the caller gets"),
        ('families=["!*"]', "leaves no family"),
        ("importance=taste", "importance must be one of"),
        ("combine=wish", "combine must be one of"),
        ("allocation=fair", "must be one of 'uniform'"),
        ("importance=lasso", "importance=lasso}': needs inputs"),
        ("allocation=sensitivity", "allocation=sensitivity}': needs inputs"),
        ("allocation=sensitivity-metric", "allocation=sensitivity-metric}': needs inputs"),
        ("importance=batch-norm-scale", "passes through no BatchNormalization"),
    ],
)
def test_bad_options(run: Run, model: Path, options: str, says: str) -> None:
    code, said = _optimize(run, model, f"remove-channels{{{options}}}")
    assert code == 2
    assert says in said


def test_too_few_inputs(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "wide.onnx"
    text = """wide (float[N,3] x) => (float[N,5] y) <float[3,500] w, float[500,5] v> {
        h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"""
    onnx.save(parse(text), path)
    np.savez(tmp_path / "few.npz", x=np.ones((8, 3), np.float32))
    data = ("--data", tmp_path / "few.npz")
    code, said = _optimize(run, path, "remove-channels{importance=reconstruction}", *data)
    assert code == 2
    assert "4 inputs are too few to judge the 500 channels of 'w'; give at least 32" in said


def test_layers_that_a_refit_leaves_alone_are_told(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "wide.onnx"
    text = """wide (float[N,3] x) => (float[N,5] y) <float[3,6] w, float[6,50] v, float[50,5] u> {
        a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Relu(c) y = MatMul(d, u) }"""
    onnx.save(parse(text), path)
    few = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    np.savez(tmp_path / "few.npz", x=few)
    data = ("--data", tmp_path / "few.npz")
    code, said = _optimize(run, path, "remove-channels{align=1},refit", *data)
    assert code == 0, said
    assert "refit: 'y' is left as it was, needs at least 25 inputs" in said


def test_data_choose_the_channels(run: Run, model: Path, images: Path, tmp_path: Path) -> None:
    passes = "remove-channels{macs=0.5, importance=reconstruction, allocation=sensitivity}"
    report = tmp_path / "report.json"
    code, said = _optimize(run, model, passes, "--data", images, "--json", report)
    assert code == 0, said
    found = json.loads(report.read_text())
    assert found["result"]["macs"] <= 0.5 * found["baseline"]["macs"]
    assert found["passes"][0]["accepted"]


@pytest.mark.parametrize(
    "recipe",
    [
        *("channel-pruning-untrained", "geometric-median-untrained", "network-trimming-untrained"),
        *("pruning-filters-untrained", "thinet-untrained"),
        *("network-slimming", "soft-geometric-median", "thinet"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *(
                    "channel-pruning",
                    "geometric-median",
                    "network-trimming",
                    "pruning-filters",
                    "taylor",
                ),
            )
        ),
    ],
)
def test_recipes_of_the_literature(run: Run, model: Path, images: Path, recipe: str) -> None:
    before = onnx.load(model)
    code, out, err = run("optimize", model, "--no-bench", "--recipe", recipe, "--data", images)
    assert code == 0, out + err
    after = onnx.load(model.with_name("net.opt.onnx"))
    assert "rolled back" not in out
    assert after.ByteSize() < 0.9 * before.ByteSize()


@pytest.mark.parametrize(
    "passes",
    ["remove-channels{importance=l1}", "remove-and-refit{macs=0.8}", "remove-channels,refit"],
)
def test_nan_in_weights_is_bad_input(run: Run, tmp_path: Path, images: Path, passes: str) -> None:
    found = parse(CHAIN)
    (place,) = [i for i, entry in enumerate(found.graph.initializer) if entry.name == "v"]
    array = numpy_helper.to_array(found.graph.initializer[place]).copy()
    array.flat[3] = np.nan
    found.graph.initializer[place].CopyFrom(numpy_helper.from_array(array, "v"))
    path = tmp_path / "bad.onnx"
    onnx.save(found, path)
    code, said = _optimize(run, path, passes, "--data", images)
    assert code == 2
    assert "weight 'v' holds NaN or infinite values" in said
    assert not (tmp_path / "bad.opt.onnx").exists()


def test_notes_between_passes_do_not_stay_in_the_file(
    run: Run, model: Path, tmp_path: Path
) -> None:
    code, _ = _optimize(run, model, "remove-channels")
    assert code == 0
    assert not onnx.load(tmp_path / "net.opt.onnx").metadata_props
