"""Draws in all slots from one pass over a noisy data sequence (rollout/contexts/parallel.py)."""

import pytest
import torch
from building.samplers import record_of

from common.config.plugins import kinds
from common.errors import InputError
from common.exchange.condition import ClassConditions
from common.models.filters import FilterConfig, filtered_logprob
from common.models.guidance import Guidance, guide, scale_per_slot
from common.randomness import Draws
from rollout.contexts.parallel import noisy
from rollout.forced import ForcedPass
from rollout.sampler import SamplingConfig, draw, noise

ROWS, GROUP = 6, 3


@pytest.fixture
def sampled(tiny, data):
    def build(kind, share=0.5, size=GROUP, count=ROWS, first=ROWS, sampling=None, **sources):
        parallel = {"noise": share, "ratio": 3}
        settings = {"size": size, "count": count, "first": first, "sampling": sampling or {}}
        return record_of(tiny(kind, 1), data, {"parallel": parallel, **sources}, **settings)

    return build


@pytest.mark.parametrize("kind", kinds("common.models.backbones"))
def test_a_group_is_drawn_from_one_pass_over_what_it_shares(sampled, kind):
    batch, student, passes = sampled(kind)
    assert passes == [ROWS // GROUP], "one pass, one row of it for each group"
    assert set(batch.policy) == {"student"}
    assert set(batch.law) == {"exact"}
    assert (batch.prefix_B == 0).all()
    seeds = [Draws(3, 10).noise_seed(index) for index in range(ROWS, 2 * ROWS)]
    with torch.no_grad():
        logprob_BLV = student(batch.label_B, batch.input_BL, batch.plan).log_softmax(-1)
    drawn_BL = draw(logprob_BLV, noise(seeds, batch.spec.length))
    assert torch.equal(batch.token_BL, drawn_BL), "with the noise of every sample's own"
    wanted_BL = logprob_BLV.gather(-1, batch.token_BL[..., None])[..., 0]
    torch.testing.assert_close(batch.logprob_BL, wanted_BL, atol=1e-5, rtol=1e-5)
    alone, *_ = sampled(kind, size=1, count=ROWS // GROUP, first=ROWS // GROUP)
    conditions = torch.arange(ROWS) // GROUP
    for name in ("input_BL", "target_BL"):
        assert torch.equal(getattr(batch, name), getattr(alone, name)[conditions]), name
    assert not torch.equal(batch.input_BL, batch.target_BL)


def test_what_is_read_is_data_where_it_was_not_replaced(sampled):
    clean, *_ = sampled("llamagen", share=0.0)
    assert torch.equal(clean.input_BL, clean.target_BL)
    assert not torch.equal(clean.token_BL, clean.target_BL)
    vocab, data_KL = 8, torch.randint(8, (200, 50), generator=torch.Generator().manual_seed(0))
    count = data_KL.numel()
    for share in (1.0, 0.5):
        kept = float((noisy(data_KL, share, range(200), vocab) == data_KL).double().mean())
        wanted = 1 - share + share / vocab
        assert abs(kept - wanted) < 4 * (wanted * (1 - wanted) / count) ** 0.5
    again_KL = noisy(data_KL[3:5], 0.5, (3, 4), vocab)
    assert torch.equal(again_KL, noisy(data_KL, 0.5, range(200), vocab)[3:5])


def test_filters_and_guidance_are_the_samplers_own_and_make_the_law_approximate(sampled):
    """Beside data rows, which are read as they are."""
    sampling = {"guidance": 2.0, "top_k": 4, "temperature": 0.8}
    batch, student, _ = sampled("var", sampling=sampling, size=1, count=8, data={})
    assert {"data", "parallel"} == set(batch.context)
    mine = torch.tensor([name == "parallel" for name in batch.context])
    assert [law == "approximate" for law in batch.law] == mine.tolist()
    assert torch.equal(batch.input_BL[~mine], batch.token_BL[~mine])
    scales = Guidance(scale=2.0).scales(batch.plan, student.guidance_rule)
    null_B = torch.full_like(batch.label_B, batch.spec.null_class)
    with torch.no_grad():
        pair = (student(of, batch.input_BL, batch.plan) for of in (batch.label_B, null_B))
        logit_BLV = guide(*pair, scale_per_slot(scales, batch.plan)[:, None])
    wanted_BLV = filtered_logprob(logit_BLV, FilterConfig(top_k=4, temperature=0.8))
    wanted_BL = wanted_BLV.gather(-1, batch.token_BL[..., None])[..., 0]
    torch.testing.assert_close(batch.logprob_BL[mine], wanted_BL[mine], atol=1e-4, rtol=1e-4)
    assert (batch.logprob_BL[~mine] == 0).all()


def test_guidance_of_a_student_in_bfloat16_is_exact_up_to_its_rounding(sampled):
    batch, student, _ = sampled("var")
    sampling, table = SamplingConfig(guidance=Guidance(scale=2.0)), ClassConditions(3)
    found = []
    for model in (student, student.bfloat16()):
        forced = ForcedPass(model, sampling, table)
        given = batch.label_B, batch.token_BL, batch.plan
        with torch.no_grad():
            found.append(forced.draws(*given, noise_KLG=torch.zeros(*batch.token_BL.shape, 1)))
    (first, logprob), (other, half) = found
    assert torch.equal(first, other)
    torch.testing.assert_close(logprob, half, atol=0.05, rtol=0.05)


def test_students_of_one_pass_are_refused(run_in):
    with pytest.raises(InputError, match="reads data by a student that decodes token by token"):
        run_in(
            *("models.student={kind='dd1_llamagen'}", "contexts.sources={parallel={}}"),
            *("objective={kind='dd1'}",),
        )
