"""Own codes one scale deep (rollout/contexts/stagger.py), and codes that put them right."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from building.samplers import record_of
from torch.nn import functional as F

from common.errors import InputError
from common.exchange.trajectory import concatenate, from_arrow, to_arrow
from common.models.residual_quantizer import ResidualQuantizer
from common.randomness import Draws
from deploy.run_folder.opening import open_run
from rollout.sampler import draw, noise

SIDES = (1, 2, 4, 8)


@pytest.fixture
def student(tiny):
    """Whose scales are painted from codes of some size."""
    model = tiny("var", 1)
    quantizer, generator = model.quantizer, torch.Generator().manual_seed(4)
    for buffer in (quantizer.code_VD, quantizer.phi_weight, quantizer.phi_bias):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model


def staggered(student, data, *, size=1, ratio=1, others=None, **stagger):
    sources = {"stagger": {"ratio": ratio, **stagger}, **(others or {})}
    return record_of(student, data, sources, size=size)


def test_own_codes_of_each_scale_come_from_one_pass_over_data(student, data):
    """The labels of both passes are one column, whatever was dropped."""
    best, held, passes = staggered(student, data, size=3)
    assert passes == [2]
    with torch.no_grad():
        logprob_BLV = held(best.label_B, best.target_BL, best.plan).log_softmax(-1)
    assert (best.label_B == best.spec.null_class).any()
    assert torch.equal(best.token_BL, logprob_BLV.argmax(-1))
    assert (best.logprob_BL == 0).all(), "with certainty"
    assert best.input_token_BL is None, "read as they are"
    assert best.plan.history_B is None
    assert set(best.policy) == {"student"}
    assert set(best.law) == {"approximate"}
    drawn, *_ = staggered(student, data, size=3, prediction="sample")
    seeds = [Draws(3, 10).noise_seed(index) for index in range(6)]
    assert torch.equal(drawn.token_BL, draw(logprob_BLV, noise(seeds, best.spec.length)))
    wanted_BL = logprob_BLV.gather(-1, drawn.token_BL[..., None])[..., 0]
    torch.testing.assert_close(drawn.logprob_BL, wanted_BL, atol=1e-5, rtol=1e-5)
    hard, _, passes = staggered(student, data, size=3, prediction="sample", target="own")
    assert passes == [2]
    assert torch.equal(hard.token_BL, best.token_BL), "labels are the likeliest"
    assert torch.equal(hard.input_BL, drawn.token_BL)


@pytest.mark.parametrize("prediction", ["argmax", "sample"])
def test_the_datas_codes_are_labels_behind_own_ones(student, data, prediction):
    batch, *_ = staggered(student, data, size=3, target="data", prediction=prediction)
    own, *_ = staggered(student, data, size=3, prediction=prediction)
    assert torch.equal(batch.token_BL, batch.target_BL)
    assert torch.equal(batch.input_BL, own.token_BL)
    assert (batch.token_BL != batch.input_BL).any()
    assert (batch.logprob_BL == 0).all(), "nobody drew them"


@torch.no_grad()
def test_what_is_read_is_what_the_cached_sampler_feeds_after_the_same_codes(student, data):
    """To the bit; so codes that are the data's are read as data is."""
    batch, held, _ = staggered(student, data)
    read_BnD = held.quantizer.inputs(batch.input_BL)
    state = held.begin(batch.label_B, batch.plan)
    first = batch.plan.starts[1]
    for step in range(len(batch.plan.step_sizes)):
        held.predict(state)
        slots = batch.plan.slots(step)
        if step:
            fed = read_BnD[:, slots.start - first : slots.stop - first]
            assert torch.equal(state.cache.pending_BnD, fed)
        held.commit(state, batch.token_BL[:, slots])
    as_data = replace(batch, token_BL=batch.target_BL)
    passes = (held(b.label_B, b.input_BL, b.plan) for b in (as_data, batch))
    on_data, on_own = passes
    assert torch.equal(on_data, held(batch.label_B, batch.target_BL, batch.plan))
    assert torch.equal(on_data[:, :first], on_own[:, :first])
    assert not torch.equal(on_data, on_own)


@torch.no_grad()
def test_a_truncated_history_is_the_class_and_the_own_input_alone(student, data):
    """Beside rows of data, whose history is whole, through the wire and joined to others."""
    batch, held, _ = staggered(student, data, history="truncated", others={"data": {}})
    mine = torch.tensor([name == "stagger" for name in batch.context])
    assert 0 < int(mine.sum()) < len(batch)
    assert batch.plan.history().tolist() == torch.where(mine, 0, 3).tolist()
    data_rows = replace(batch, plan=replace(batch.plan, history_B=None)).rows(slice(0, 1))
    joined = from_arrow(to_arrow(concatenate([batch, data_rows])))
    assert joined.plan.history().tolist() == [*batch.plan.history().tolist(), 3]
    whole = held(batch.label_B, batch.input_BL, replace(batch.plan, history_B=None))
    found = held(batch.label_B, batch.input_BL, batch.plan)
    torch.testing.assert_close(found[~mine], whole[~mine], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, :1], whole[:, :1], atol=1e-5, rtol=1e-5)
    last = batch.plan.slots(2)
    assert (found - whole)[mine][:, last].abs().max() > 1e-3
    inputs = held.quantizer.inputs(batch.input_BL)
    inputs[:, : batch.plan.step_sizes[1]] += 1.0  # of the second scale alone
    held.quantizer.inputs = lambda token_BL: inputs
    moved = held(batch.label_B, batch.input_BL, batch.plan)
    torch.testing.assert_close(moved[mine][:, last], found[mine][:, last], atol=1e-5, rtol=1e-5)
    assert (moved - found)[~mine][:, last].abs().max() > 1e-3
    del held.quantizer.inputs
    held.pos_start.normal_()  # the first scale's own, which all see
    moved = held(batch.label_B, batch.input_BL, batch.plan)
    assert (moved - found)[mine][:, last].abs().max() > 1e-2
    damaged = replace(batch, plan=replace(batch.plan, history_B=torch.full((len(batch),), 9)))
    with pytest.raises(InputError, match=r"history 9\.\.9"):
        from_arrow(to_arrow(damaged))


def test_requantised_codes_are_those_of_what_the_own_scales_before_lack(student, data):
    batch, held, _ = staggered(student, data, target="requantised")
    own, quantizer = batch.input_BL, held.quantizer
    latent = quantizer.accumulate(batch.target_BL)
    for scale in range(3):
        before = quantizer.inputs_to(own, scale)[1]
        vectors = quantizer.shrink(latent - before, scale).flatten(2).transpose(1, 2)
        wanted = quantizer.nearest(vectors.reshape(-1, vectors.shape[-1]))
        assert torch.equal(batch.token_BL[:, quantizer.slots(scale)].flatten(), wanted)
    assert not torch.equal(own, batch.token_BL)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_requantising_brings_a_corrupted_image_closer_to_the_latent(share):
    """Some codes of one scale are replaced, at least one, and those of every later one made anew;
    latents with detail of all sizes, codes of all lengths."""
    generator = torch.Generator().manual_seed(0)
    quantizer, count = ResidualQuantizer(256, 4, SIDES), 200
    length_V1 = 1.5 * torch.rand(256, 1, generator=generator)
    length_V1[0] = 0
    quantizer.code_VD.copy_(torch.randn(256, 4, generator=generator) * length_V1)
    details = [0.5 * torch.randn(count, 4, side, side, generator=generator) for side in SIDES]
    latent = torch.stack([F.interpolate(d, SIDES[-1], mode="bicubic") for d in details]).sum(0)
    clean_BL = quantizer.quantise(latent)
    assert (quantizer.requantise(latent, clean_BL) == clean_BL).double().mean() > 0.999

    def distance(token_BL):
        return (quantizer.accumulate(token_BL) - latent).square().flatten(1).mean(1)

    after_one = []
    for scale in range(len(SIDES) - 1):
        slots, corrupted_BL = quantizer.slots(scale), clean_BL.clone()
        chosen = torch.rand(count, SIDES[scale] ** 2, generator=generator) < share
        chosen[:, 0] = True
        other = torch.randint(256, chosen.shape, generator=generator)
        corrupted_BL[:, slots] = torch.where(chosen, other, clean_BL[:, slots])
        right_BL, closer = corrupted_BL.clone(), []
        for later in range(scale + 1, len(SIDES)):
            part = quantizer.slots(later)
            right_BL[:, part] = quantizer.requantise(latent, right_BL)[:, part]
            closer.append((distance(right_BL) < distance(corrupted_BL)).double().mean())
        after_one.append(closer[0])
        assert closer[-1] >= 0.99, scale
    assert sum(after_one) / len(after_one) >= 0.95


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["contexts.sources={stagger={}}"], "but the tokens are of one raster"),
        (
            ["contexts.sources={student={},data={}}", "objective={kind='sar'}"],
            r"takes the codes of the student's rows for labels, but contexts\.sources\.student",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(run_in, overrides, message):
    with pytest.raises(InputError, match=message):
        run_in(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective={kind='gkd'}", "contexts.sources={stagger={target='own'}}"], "set target to"),
        (["objective={kind='sampled_rkl'}", "contexts.sources={stagger={}}"], "not drawn from"),
    ],
)
def test_targets_and_objectives_must_agree(overrides, message):
    with pytest.raises(InputError, match=message):
        open_run(Path("var_d30_to_d16"), overrides)
