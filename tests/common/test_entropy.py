"""Entropies from logits, beside float64."""

import math

import pytest
import torch
from building.gpus import needs_gpu
from torch import nn

from common.exchange.entropy import CHUNK, entropies, entropies_of, entropy_of


def exact(logit_BLV):
    return torch.distributions.Categorical(logits=logit_BLV.double()).entropy()


def head_of(width, vocab):
    head = nn.Linear(width, vocab, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocab, width, generator=torch.Generator().manual_seed(1)))
    return head


@pytest.mark.parametrize("vocab", [1, 5, 16, 1000, 4099])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_they_are_those_of_the_heads_logits(vocab, spread):
    generator = torch.Generator().manual_seed(0)
    hidden_BLC = spread * torch.randn(2, CHUNK - 50, 8, generator=generator)
    head = head_of(8, vocab)
    found_BL = entropies(hidden_BLC, head)
    with torch.no_grad():
        expected_BL = exact(head(hidden_BLC))
    assert found_BL.dtype == torch.float32
    torch.testing.assert_close(found_BL.double(), expected_BL, rtol=2e-5, atol=2e-6)


def test_codes_without_a_share_add_nothing():
    logprob_BLV = torch.full((1, 2, 37), -torch.inf)
    logprob_BLV[0, 0, 36] = 0  # one code alone
    logprob_BLV[0, 1, [3, 20]] = torch.tensor(0.5).log()
    found_BL = entropies_of(logprob_BLV)
    torch.testing.assert_close(found_BL, torch.tensor([[0.0, math.log(2)]]))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("code", [0, 15, 16, 36])
def test_logits_that_are_not_finite_have_no_entropy(wrong, code):
    logit_BLV = torch.zeros(1, 3, 37)
    logit_BLV[0, 1, code] = wrong
    found_BL = entropies_of(logit_BLV)
    assert found_BL[0, 1].isnan()
    assert found_BL[0, [0, 2]].isfinite().all()


def test_nothing_has_a_share():
    assert entropies_of(torch.full((1, 1, 20), -torch.inf)).isnan().all()


def test_double_precision_stays():
    generator = torch.Generator().manual_seed(0)
    logit_BLV = torch.randn(1, 4, 33, generator=generator, dtype=torch.double)
    logprob_BLV = logit_BLV.log_softmax(-1)
    torch.testing.assert_close(entropies_of(logprob_BLV), entropy_of(logprob_BLV))


class TestOnAGpu:
    pytestmark = needs_gpu

    def test_they_are_those_of_a_cpu(self):
        hidden_BLC = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
        head = head_of(8, 300)
        expected_BL = entropies(hidden_BLC, head)
        found_BL = entropies(hidden_BLC.cuda(), head.cuda())
        torch.testing.assert_close(found_BL.cpu(), expected_BL, rtol=1e-4, atol=1e-5)
