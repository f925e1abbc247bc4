"""A draw by one call of C against the operations that it takes the place of."""

import pytest
import torch

from common.models.filters import filtered_logprob
from rollout import inverse_cdf
from rollout.inverse_cdf import draw, drawn
from rollout.sampler import SamplingConfig

pytestmark = pytest.mark.skipif(inverse_cdf._library() is None, reason="no C compiler")

PLAIN = SamplingConfig()


def pair(logit_BnV, noise_Bn, filters=PLAIN):
    logprob = filtered_logprob(logit_BnV, filters)
    token = draw(logprob, noise_Bn)
    wanted = token, logprob.gather(-1, token[..., None])[..., 0]
    return drawn(logit_BnV, noise_Bn, filters, draw), wanted


@pytest.mark.parametrize("codes", [1, 5, 255, 256, 257, 5003])
def test_codes_and_log_probabilities_are_the_same(codes):
    generator = torch.Generator().manual_seed(0)
    logit = 3 * torch.randn(40, 3, codes, generator=generator)
    noise = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    noise[0], noise[1] = 0, 1 - 1e-7
    for filters in (SamplingConfig(), SamplingConfig(top_k=7), SamplingConfig(temperature=0.3)):
        (token, logprob), (wanted, its) = pair(logit, noise, filters)
        assert torch.equal(token, wanted)
        torch.testing.assert_close(logprob, its, rtol=1e-5, atol=2e-6)


def test_what_was_filtered_away_is_never_drawn():
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(2000, 1, 600, generator=generator)
    gone = torch.rand(logit.shape, generator=generator) < 0.9
    logit[gone] = -torch.inf
    noise = torch.rand(2000, 1, generator=generator, dtype=torch.float64)
    noise[::2] = 1 - 2**-53
    noise[1::4] = 0
    (token, logprob), (wanted, _) = pair(logit, noise)
    assert logprob.isfinite().all()
    assert (token != wanted).float().mean() < 0.01  # where u is at the edge of two codes


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_give_no_finite_probability(value):
    logit = torch.zeros(2, 1, 300)
    logit[1, 0, 299] = value
    (token, logprob), _ = pair(logit, torch.full((2, 1), 0.5, dtype=torch.float64))
    assert logprob.isfinite().tolist() == [[True], [False]]
    assert 0 <= int(token[1]) < 300
