"""Drawing at its edges, with values worked out by hand: ties, zeros, one code and two."""

import math

import pytest
import torch

from common.models.filters import filtered_logprob
from common.spec import SequenceSpec
from rollout.sampler import SamplingConfig, draw, sample

LAST = 1 - 2.0**-53
"""The largest uniform that a generator gives."""


def drawn_from(logits, **sampling):
    """Probabilities that are drawn from."""
    logit_BnV = torch.tensor([[logits]])
    return filtered_logprob(logit_BnV, SamplingConfig(**sampling)).exp()[0, 0].tolist()


@pytest.mark.parametrize(
    ("top_k", "wanted"),
    [
        (1, [0, 1 / 2, 1 / 2, 0]),  # both of the largest, though one was asked for
        (2, [0, 1 / 2, 1 / 2, 0]),
        (4, [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        (9, [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    ],
)
def test_top_k_keeps_all_that_tie_with_the_last_one(top_k, wanted):
    two = math.log(2)
    assert drawn_from([0.0, two, two, 0.0], top_k=top_k) == pytest.approx(wanted)


@pytest.mark.parametrize("rule", ["llamagen", "var"])
def test_top_p_never_removes_the_likeliest_code(rule):
    logits = [math.log(p) for p in (0.5, 0.25, 0.25)]
    assert drawn_from(logits, top_p=0.3, top_p_rule=rule) == pytest.approx([1, 0, 0])


def test_top_p_at_the_edge_is_each_familys_own():
    """p = (1/2, 1/4, 1/4) to the bit: 1/2 lies before the second code, 1/2 from it down. LlamaGen
    drops what has more than top_p before it, VAR what has no more than 1 - top_p from it
    down, so one of the two that tie stays, or neither."""
    logits = [math.log(2), 0.0, 0.0]
    assert drawn_from(logits, top_p=0.5) == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-6)
    assert drawn_from(logits, top_p=0.5, top_p_rule="var") == pytest.approx([1, 0, 0])


def test_a_code_of_no_probability_stays_one_and_is_never_drawn():
    logits = [-math.inf, 0.0, -math.inf, 0.0]
    for how in ({}, {"top_k": 3}, {"top_p": 0.99}, {"temperature": 2.0}):
        assert drawn_from(logits, **how) == pytest.approx([0, 1 / 2, 0, 1 / 2])
    logprob_BnV = filtered_logprob(torch.tensor([[logits]]), SamplingConfig())
    for uniform, wanted in ((0.0, 1), (0.4999, 1), (0.5, 3), (LAST, 3)):
        noise_Bn = torch.tensor([[uniform]], dtype=torch.float64)
        assert draw(logprob_BnV, noise_Bn).tolist() == [[wanted]]


def test_the_ends_of_the_unit_interval_draw_codes_that_exist():
    logprob_BnV = torch.tensor([[[0.25, 0.25, 0.5]]]).log()
    for uniform, wanted in ((0.0, 0), (0.2499, 0), (0.25, 1), (0.75, 2), (LAST, 2)):
        noise_Bn = torch.tensor([[uniform]], dtype=torch.float64)
        assert draw(logprob_BnV, noise_Bn).tolist() == [[wanted]]


def test_a_single_code_is_certain_under_every_setting():
    how = {"top_k": 1, "top_p": 0.1, "temperature": 0.1}
    logprob_BnV = filtered_logprob(torch.tensor([[[-7.0]]]), SamplingConfig(**how))
    assert logprob_BnV.tolist() == [[[0.0]]]
    assert draw(logprob_BnV, torch.tensor([[LAST]], dtype=torch.float64)).tolist() == [[0]]


@pytest.mark.parametrize("kind", ["llamagen", "arpg"])
@pytest.mark.parametrize("vocab_size", [1, 2])
def test_sequences_of_one_token_from_one_or_two_codes(tiny, kind, vocab_size):
    model = tiny(kind, spec=SequenceSpec(vocab_size, 1, (1, 1), num_classes=2))
    label_B = torch.tensor([0, 1, 2])
    decoded = sample(model, label_B, range(3), SamplingConfig())
    logprob_BV = model(label_B, decoded.token_BL, decoded.plan).log_softmax(-1)[:, 0]
    chosen_B = logprob_BV.gather(-1, decoded.token_BL)[:, 0]
    torch.testing.assert_close(decoded.logprob_BL[:, 0], chosen_B.detach(), atol=1e-5, rtol=1e-5)
    assert set(decoded.token_BL.flatten().tolist()) <= set(range(vocab_size))
    if vocab_size == 1:
        assert decoded.logprob_BL.tolist() == [[0.0]] * 3
