"""The reference networks have the sizes that the literature counts, and compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.networks import NETWORKS

# (parameters, multiply-accumulates of the convolutions and matrix products for one image);
# mobilenet-v2: the 3,504,872 parameters of the network for ImageNet less 990 classes of 1,281
COUNTS = {
    "lenet-300-100": (266_610, 266_200),
    "lenet-5": (431_080, 2_293_000),
    "slimming-mlp": (546_610, 545_000),
    "resnet-20": (269_722, 40_551_040),
    "resnet-32": (464_154, 68_862_592),
    "resnet-56": (853_018, 125_485_696),
    "resnet-110": (1_727_962, 252_887_680),
    "vgg-16-bn": (14_987_722, 313_463_808),
    "mobilenet-v2": (2_236_682, 87_976_448),
    "densenet-40": (1_059_298, 282_917_328),
    "vit": (2_693_578, 182_849_664),
    "digits-resnet": (276_682, 85_820_032),
}

# what papers print for the same networks: millions of parameters and of multiply-accumulates
PUBLISHED = {
    "lenet-5": ("0.431", "2.293"),
    "resnet-20": ("0.270", "40.6"),
    "resnet-32": ("0.464", "68.9"),
    "resnet-56": ("0.853", "125.5"),
    "resnet-110": ("1.728", "252.9"),
    "vgg-16-bn": ("14.99", "313.5"),
    "densenet-40": ("1.06", "282.9"),
}

# the same code as resnet-20, repeated more often
DEEPER = {"resnet-32", "resnet-56", "resnet-110"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name: str) -> nn.Module:
    """Build without memory or computation, in evaluation mode."""
    with torch.device("meta"):
        return NETWORKS[name].build().eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_counts(name: str) -> None:
    network = build(name)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *NETWORKS[name].shape, device="meta"))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert (parameters, counter.get_total_flops() // 2) == COUNTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_round_to_the_published_ones(name: str) -> None:
    for count, published in zip(COUNTS[name], PUBLISHED[name], strict=True):
        digits = len(published.partition(".")[2])
        assert f"{count / 1e6:.{digits}f}" == published


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - DEEPER))
def test_every_parameter_takes_part(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name].build().eval()
    logits = network(torch.randn(1, *NETWORKS[name].shape))
    assert logits.shape == (1, 10)
    (logits * torch.arange(10)).sum().backward()
    idle = [
        key
        for key, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert idle == []


def test_shortcuts_of_cifar_resnets_have_no_parameters() -> None:
    keys = build("resnet-20").state_dict()
    assert not [key for key in keys if "shortcut" in key]


def test_padded_shortcut_subsamples_and_centres() -> None:
    widening = NETWORKS["resnet-20"].build().get_submodule("blocks.3.shortcut")
    features = torch.randn(1, 16, 4, 4)
    out = widening(features)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[:, 8:24], features[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize(
    ("name", "block", "last_norm", "width"),
    [
        ("resnet-20", "blocks.1", "bn2", 16),
        ("digits-resnet", "blocks.1", "bn2", 32),
        ("mobilenet-v2", "blocks.3", "layers.2.bn", 24),
    ],
)
def test_a_silent_residual_block_passes_its_input(
    name: str, block: str, last_norm: str, width: int
) -> None:
    residual = NETWORKS[name].build().eval().get_submodule(block)
    for parameter in residual.get_submodule(last_norm).parameters():
        nn.init.zeros_(parameter)
    features = torch.rand(1, width, 4, 4)
    assert torch.equal(residual(features), features)
