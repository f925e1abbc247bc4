"""Where VA-pi ends on tables, in closed form and by enumeration (docs/method.md)."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from common.exchange.trajectory import TrajectoryBatch
from common.models.plan import natural_plan
from common.spec import SequenceSpec
from learner.categorical import Categorical
from learner.objective import TokenChunk
from learner.objectives import vapi
from learner.process_group import SingleProcess

GROUP, ROWS = 3, 12


PARTS = {"rewards": {"good": 1.0, "fine": 0.5}}


def made(**fields):
    return vapi.Config.model_validate({**PARTS, **fields})


def slots(token_B, target_B, spec, group, **columns):
    """Draws of single-slot groups, or of whole sequences, as a batch; what is read says nothing."""
    token_BL, target_BL = (of.view(len(of), -1) for of in (token_B, target_B))
    index_B = torch.arange(len(token_BL))
    return TrajectoryBatch(
        spec=spec,
        id_B=index_B,
        version_B=torch.zeros_like(index_B),
        label_B=torch.zeros_like(index_B),
        context=("parallel",) * len(index_B),
        policy=("student",) * len(index_B),
        law=("exact",) * len(index_B),
        prefix_B=torch.zeros_like(index_B),
        plan=natural_plan(len(index_B), spec),
        token_BL=token_BL,
        input_token_BL=torch.zeros_like(token_BL),
        target_token_BL=target_BL,
        group_B=index_B // group,
        member_B=index_B % group,
        **columns,
    )


def losses_of(objective, batch, logprob_LV, rows):
    """loss of the groups' slots, (K, L), where all have the same distributions."""
    column = objective.token_weights(batch, {}, SingleProcess()).column
    column = {name: value[rows].flatten(0, 1) for name, value in column.items()}
    logprob_NV = logprob_LV.expand(len(rows), *logprob_LV.shape).flatten(0, 1)
    chunk = TokenChunk(
        "student", batch.token_BL[rows].flatten(), Categorical.normalised(logprob_NV), None, column
    )
    return objective.token_loss(chunk).view(len(rows), -1)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_one_slot_ends_at_the_closed_form(beta):
    """q = b p / (l - r), with l from its sum: the gradient of the exact expectation, over every
    pair of draws and every label, is 0 there. A pair's mean has the draw in it, so b is 2 beta."""
    vocab, pair = 8, 2
    generator = torch.Generator().manual_seed(0)
    p_V = (1.5 * torch.randn(vocab, generator=generator, dtype=torch.double)).softmax(-1)
    reward_V = -torch.arange(vocab).sub(3).square().double() / 32  # exact in float32
    b, low, high = beta * pair / (pair - 1), float(reward_V.max()), 100.0
    for _ in range(200):
        middle = (low + high) / 2
        above = float((b * p_V / (middle - reward_V)).sum()) > 1
        low, high = (middle, high) if above else (low, middle)
    q_V = b * p_V / (high - reward_V)
    assert float(q_V.sum()) == pytest.approx(1, abs=1e-12)
    triples = torch.tensor(list(itertools.product(range(vocab), repeat=3)))
    token_B, target_B = triples[:, :pair].flatten(), triples[:, 2].repeat_interleave(pair)
    batch = slots(
        token_B,
        target_B,
        SequenceSpec(vocab, 1, (1, 1), 1),
        pair,
        logprob_BL=q_V.log()[token_B][:, None],
        sequence={"good": reward_V[token_B], "fine": torch.zeros(len(token_B))},
    )
    logit_V = q_V.log().requires_grad_()
    objective = made(beta=beta, advantage={"std": "none", "clip": 0})
    rows = torch.arange(0, len(batch), pair)
    loss_K = losses_of(objective, batch, logit_V.log_softmax(-1)[None], rows)[:, 0]
    chance_K = q_V[triples[:, 0]] * q_V[triples[:, 1]] * p_V[triples[:, 2]]
    (grad_V,) = torch.autograd.grad((chance_K * loss_K).sum(), logit_V)
    assert grad_V.abs().max() < 1e-8
    assert (q_V - p_V).abs().max() > 0.01


def test_credit_by_slot_has_the_same_mean_and_less_noise():
    """Five slots that each draw their own part of an image: both estimates have (1 - 1/G) times the
    true gradient, and not the true one."""
    vocab, length, group, count = 6, 5, 4, 4000
    generator = torch.Generator().manual_seed(1)
    logit_LV = torch.randn(length, vocab, generator=generator)
    q_LV, code_V = logit_LV.softmax(-1), torch.linspace(-1, 1, vocab)
    aim_L = code_V[torch.tensor([0, 2, 5, 1, 3])]
    token_BL = torch.multinomial(q_LV, count * group, replacement=True, generator=generator).T
    share_BL = -(code_V[token_BL] - aim_L).square() / length
    batch = slots(
        token_BL,
        torch.zeros_like(token_BL),
        SequenceSpec(vocab, length, (1, length), 1),
        group,
        logprob_BL=q_LV.log()[torch.arange(length), token_BL],
        sequence={"good": share_BL.sum(1), "fine": torch.zeros(len(token_BL))},
        signal={"good": share_BL, "fine": torch.zeros_like(share_BL)},
    )
    reward_LV = -(code_V - aim_L[:, None]).square() / length
    centred_LV = reward_LV - (q_LV * reward_LV).sum(-1, keepdim=True)
    true_LV = (1 - 1 / group) * q_LV * centred_LV
    noise = {}
    for per_token in (False, True):
        objective = made(per_token=per_token, beta=0, advantage={"std": "none", "clip": 0})
        column = objective.token_weights(batch, {}, SingleProcess()).column
        rows = torch.arange(0, len(batch), group)
        draw_KLGV = F.one_hot(column["draws"][rows].long(), vocab).float() - q_LV[:, None]
        grad_KLV = (column["advantages"][rows][..., None] * draw_KLGV).mean(2)
        error_LV = grad_KLV.std(0) / count**0.5
        z_LV = (grad_KLV.mean(0) - true_LV) / error_LV
        assert z_LV.abs().max() < 4
        noise[per_token] = float(grad_KLV.var(0).sum())
        if per_token:
            unscaled_LV = (grad_KLV.mean(0) - true_LV / (1 - 1 / group)) / error_LV
            assert unscaled_LV.abs().max() > 8
    assert noise[False] > 2 * noise[True]


@pytest.mark.parametrize("beta", [0.1, 0.0])
def test_an_identity_decoder_rewards_the_nearest_code(beta):
    """Accuracy rises and entropy falls; without the regulariser all mass ends on one code, which is
    nearest to the mean image and not the likeliest."""
    vocab, group, count = 8, 8, 64
    generator = torch.Generator().manual_seed(2)
    code_V, p_V = torch.linspace(-1, 1, vocab), torch.full((vocab,), 0.03)
    p_V[2], p_V[6] = 0.6, 0.22
    logit_V = torch.zeros(vocab, requires_grad=True)
    optimizer = torch.optim.Adam([logit_V], lr=0.15)
    objective = made(beta=beta, rewards={"good": 1.0}, advantage={"std": "none"})
    spec, draws = SequenceSpec(vocab, 1, (1, 1), 1), count * group
    rows = torch.arange(0, draws, group)
    for _ in range(100):
        q_V = logit_V.detach().softmax(-1)
        token_B = torch.multinomial(q_V, draws, replacement=True, generator=generator)
        target_K = torch.multinomial(p_V, count, replacement=True, generator=generator)
        target_B = target_K.repeat_interleave(group)
        batch = slots(
            token_B,
            target_B,
            spec,
            group,
            logprob_BL=q_V.log()[token_B][:, None],
            sequence={"good": -(code_V[token_B] - code_V[target_B]).square()},
        )
        optimizer.zero_grad()
        losses_of(objective, batch, logit_V.log_softmax(-1)[None], rows).mean().backward()
        optimizer.step()
    q_V = logit_V.detach().softmax(-1)
    accuracy, entropy = float(q_V @ p_V), float(-(q_V * q_V.log()).sum())
    if beta:
        assert accuracy > 2 / vocab
        assert 0.3 < entropy < 1.8, "of at most 2.08"
    else:
        assert q_V.argmax() == 3
        assert entropy < 0.1
