"""Batch normalisation of few channels is PyTorch's, whatever the way it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphopt.lens.narrow import is_narrow
from graphopt.lens.norms import BatchNorm


def pair(channels: int) -> tuple[BatchNorm, nn.BatchNorm2d]:
    torch.manual_seed(channels)
    ours, torchs = BatchNorm(channels, momentum=0.3), nn.BatchNorm2d(channels, momentum=0.3)
    nn.init.uniform_(torchs.weight, 0.5, 2)
    nn.init.normal_(torchs.bias)
    torchs.get_buffer("running_mean").normal_()
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "size"), [(14, (32, 32)), (7, (8, 8)), (29, (4, 12)), (40, (6, 4)), (2, (16, 2))]
)
def test_values_gradients_and_statistics(
    channels: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    ours, torchs = pair(channels)
    x = 3 * torch.randn(5, channels, *size) + torch.randn(channels, 1, 1)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    assert is_narrow(x)
    grad = torch.randn_like(x)
    made = []
    for norm in (ours, torchs):
        given = x.clone().requires_grad_()
        out = norm(given)
        out.backward(grad)
        assert out.dtype == dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
        made.append([out, given.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()])
    for place, (found, wanted) in enumerate(zip(*made, strict=True)):
        rounded = dtype == torch.bfloat16 and place < 2
        rtol, atol = (0.02, 0.03) if rounded else (1e-4, 1e-4)
        torch.testing.assert_close(
            found.float(), wanted.float(), rtol=rtol, atol=atol, msg=str(place)
        )


@pytest.mark.parametrize(
    "shape", [(2, 32, 8, 8), (2, 64, 8, 8), (2, 7, 1, 1), (2, 7, 3, 3), (2, 7, 4, 4), (4, 1, 8, 8)]
)
def test_other_shapes_are_left_to_torch(shape: tuple[int, ...]) -> None:
    """Widths that fill registers, and images whose places do not come out even."""
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    assert not is_narrow(x)
    ours, torchs = pair(shape[1])
    torch.testing.assert_close(ours(x), torchs(x))


def test_channels_that_do_not_lie_last_are_left_to_torch() -> None:
    assert not is_narrow(torch.randn(2, 7, 8, 8))
    assert not is_narrow(torch.randn(2, 7, 8))
    assert not is_narrow(torch.randn(2, 7, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(1, 7), (1, 7, 1, 1)])
def test_one_value_for_each_channel_is_normalised_by_running_statistics(
    shape: tuple[int, ...],
) -> None:
    ours, torchs = pair(7)
    x = torch.randn(shape)
    before = [tensor.clone() for tensor in ours.buffers()]
    out = ours(x)
    torch.testing.assert_close(out, torchs.eval()(x.reshape(1, 7, 1, 1)).reshape(shape))
    for tensor, old in zip(ours.buffers(), before, strict=True):
        assert torch.equal(tensor, old)
