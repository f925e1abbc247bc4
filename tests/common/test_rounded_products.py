"""Rounded factors of a GPU's products: where they are asked for, and nowhere after."""

import pytest
import torch
from building.gpus import needs_gpu

from common.device import rounded_products

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def allowed() -> bool:
    return torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("device", "dtype", "inside"),
    [
        (CUDA, torch.bfloat16, True),
        (CUDA, torch.float32, False),
        (CPU, torch.bfloat16, False),
    ],
)
def test_they_are_rounded_on_a_gpu_beside_bfloat16_alone(device, dtype, inside):
    with rounded_products(device, dtype):
        assert allowed() is inside
    assert not allowed()


def test_an_error_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError), rounded_products(CUDA, torch.bfloat16):
        raise ZeroDivisionError
    assert not allowed()


class TestOnAGpu:
    pytestmark = needs_gpu

    def test_half_precision_times_a_head_moves_logits_less_than_bfloat16_does(self):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(64, 256, generator=generator).half().float()
        weight = torch.randn(1000, 256, generator=generator) / 16
        exact = hidden.double() @ weight.double().T
        with rounded_products(CUDA, torch.bfloat16):
            rounded = (hidden.cuda() @ weight.cuda().T).double().cpu()
        coarse = (hidden.bfloat16() @ weight.bfloat16().T).double()
        assert 1e-6 < (rounded - exact).abs().max() < 4e-3 < (coarse - exact).abs().max()
