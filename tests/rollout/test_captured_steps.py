"""Decoding by captured steps: the same law as layer by layer, whatever joins and changes."""

import pytest
import torch
from building.gpus import needs_gpu

from common.device import place
from common.models.backbone import build_seeded
from common.models.backbones import llamagen
from common.models.cuda.captured_steps import CapturedSteps, padded_rows
from common.models.filters import filtered_logprob
from common.models.guidance import Guidance
from common.models.token_steps import _STEPS
from common.spec import SequenceSpec
from rollout.sampler import SamplingConfig, draw, sample

SPEC = SequenceSpec(vocab_size=50, length=64, grid=(8, 8), num_classes=7)
CONFIG = llamagen.Config(width=64, depth=2, heads=2, multiple_of=32)
LABEL_B = torch.tensor([1, 2, 3, 0, 5])
PREFIX_B = torch.tensor([0, 3, 30, 64, 41])
"""With one whole sequence, and such as join later."""
CELL_BL = torch.randint(50, (5, 64), generator=torch.Generator().manual_seed(0))


def test_few_numbers_of_rows_serve_all_and_idle_ones_are_few():
    served = [padded_rows(rows) for rows in range(1, 1025)]
    assert all(rows <= padded for rows, padded in enumerate(served, 1))
    assert all(padded - rows < max(8, padded / 5) for rows, padded in enumerate(served, 1))
    assert served == sorted(served)
    assert len(set(served)) < 40


@pytest.fixture
def model():
    found = build_seeded(CONFIG, SPEC, 0).eval()
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return found.to(place("cuda")).requires_grad_(False)


def logprobs(model, sampling, decoded):
    """What the model gives the decoded tokens, by a pass over whole sequences in float32."""
    token_BL, scale = decoded.token_BL, sampling.guidance
    label_B = LABEL_B.cuda()
    logit = model(label_B, token_BL, decoded.plan).float()
    if scale is not None:
        null = model(torch.full_like(label_B, 7), token_BL, decoded.plan).float()
        logit = null + scale.scale * (logit - null)
    logprob = filtered_logprob(logit, sampling)
    return logprob.gather(-1, token_BL[..., None])[..., 0]


@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("prefix_B", [None, PREFIX_B], ids=["whole", "prefixes"])
class TestOnAGpu:
    pytestmark = needs_gpu

    def test_float32_draws_the_tokens_of_the_layers(self, model, scale, prefix_B):
        sampling = SamplingConfig(guidance=None if scale is None else Guidance(scale=scale))
        given = {} if prefix_B is None else {"cell_BL": CELL_BL, "prefix_B": prefix_B}
        layered = sample(model, LABEL_B, range(5), sampling, **given)
        model.token_steps = CapturedSteps(model, 2 * len(LABEL_B))
        captured = sample(model, LABEL_B, range(5), sampling, **given)
        assert model.token_steps.owner is not None, "steps were not replayed"
        # A near-tie may round to either side; from there on a sequence goes its own way.
        equal_B = (captured.token_BL == layered.token_BL).all(1)
        assert equal_B.sum() >= 4
        torch.testing.assert_close(
            captured.logprob_BL[equal_B], layered.logprob_BL[equal_B], rtol=1e-4, atol=1e-4
        )

    def test_half_precision_records_the_law_it_draws_from(self, model, scale, prefix_B):
        sampling = SamplingConfig(guidance=None if scale is None else Guidance(scale=scale))
        given = {} if prefix_B is None else {"cell_BL": CELL_BL, "prefix_B": prefix_B}
        model.to(torch.bfloat16)
        found = sample(model, LABEL_B, range(5), sampling, **given)
        assert model in _STEPS, "no step was captured"
        free = found.logprob_BL != 0
        wanted = logprobs(model.float(), sampling, found)
        assert (found.logprob_BL - wanted)[free].abs().mean() < 0.03

    def test_weights_changed_in_place_are_the_ones_that_decode(self, model, scale, prefix_B):
        sampling = SamplingConfig(guidance=None if scale is None else Guidance(scale=scale))
        given = {} if prefix_B is None else {"cell_BL": CELL_BL, "prefix_B": prefix_B}
        model.to(torch.bfloat16)
        sample(model, LABEL_B, range(5), sampling, **given)
        before = _STEPS[model]
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        found = sample(model, LABEL_B, range(5), sampling, **given)
        assert _STEPS[model] is before, "captured anew"
        free = found.logprob_BL != 0
        wanted = logprobs(model.float(), sampling, found)
        assert (found.logprob_BL - wanted)[free].abs().mean() < 0.03


class TestDraws:
    pytestmark = needs_gpu

    def test_a_draw_is_the_cpus(self):
        generator = torch.Generator().manual_seed(0)
        logit = 3 * torch.randn(40, 2, 5000, generator=generator)
        logit[::2] = logit[::2].masked_fill(logit[::2] < 4, -torch.inf)
        logprob, uniform = logit.log_softmax(-1), torch.rand(40, 2, generator=generator).double()
        uniform[0] = 0
        assert torch.equal(draw(logprob.cuda(), uniform.cuda()).cpu(), draw(logprob, uniform))
