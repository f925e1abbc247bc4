"""Sampled objectives against exact expectations: all sequences of a tiny vocabulary."""

import itertools
import math
import statistics
from dataclasses import replace

import pytest
import torch

from common.exchange.trajectory import TrajectoryBatch
from common.models.plan import DecodePlan
from common.spec import SequenceSpec
from learner.categorical import Categorical
from learner.divergence import reverse_kl
from learner.objective import TokenChunk
from learner.objectives import minillm, sampled_rkl
from learner.process_group import SingleProcess
from learner.returns import returns

V, T = 3, 3
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=T)))


class Table:
    """A model that is a table: one row of logits for every prefix shorter than T."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.row = {
            prefix: torch.randn(V, generator=generator).requires_grad_()
            for length in range(T)
            for prefix in itertools.product(range(V), repeat=length)
        }

    def logprob_BLV(self):
        """For every sequence, the distributions along it."""
        rows = [
            torch.stack([self.row[tuple(y[:t].tolist())].log_softmax(-1) for t in range(T)])
            for y in SEQUENCES
        ]
        return torch.stack(rows)

    def grad(self, value):
        return torch.cat(torch.autograd.grad(value, list(self.row.values())))


@pytest.fixture
def student():
    return Table(0)


@pytest.fixture
def teacher_BLV():
    return Table(1).logprob_BLV().detach()


def of_tokens(logprob_BLV):
    return logprob_BLV.gather(-1, SEQUENCES[..., None])[..., 0]


def everything(teacher_BLV, behaviour_BL, prefix=0):
    """All sequences as one batch of rollouts that `behaviour` drew."""
    index_B = torch.arange(len(SEQUENCES))
    return TrajectoryBatch(
        spec=SequenceSpec(V, T, (1, T), 1),
        id_B=index_B,
        version_B=index_B,
        label_B=index_B,
        context=("student",) * len(SEQUENCES),
        policy=("student",) * len(SEQUENCES),
        law=("exact",) * len(SEQUENCES),
        prefix_B=torch.full_like(index_B, prefix),
        plan=DecodePlan(torch.arange(T).expand(len(SEQUENCES), -1), (1,) * T),
        token_BL=SEQUENCES,
        logprob_BL=behaviour_BL.detach(),
        signal={"token_logprob": of_tokens(teacher_BLV)},
    )


def losses(objective, batch, student_BLV, teacher_BLV):
    """loss_BL of the objective, through `token_weights` and a chunk, as in the learner."""
    token_weights = objective.token_weights(batch, {}, SingleProcess())
    column = {name: value.flatten() for name, value in token_weights.column.items()}
    assert set(column) == set(objective.columns)
    given = TokenChunk(
        "student",
        batch.token_BL.flatten(),
        Categorical(student_BLV.flatten(0, 1)),
        Categorical(teacher_BLV.flatten(0, 1)),
        column,
    )
    return token_weights.weight_BL * objective.token_loss(given).view_as(batch.token_BL)


def test_minillm_has_the_gradient_of_the_sequence_level_reverse_kl(student, teacher_BLV):
    student_BLV = student.logprob_BLV()
    log_q_B, log_p_B = of_tokens(student_BLV).sum(1), of_tokens(teacher_BLV).sum(1)
    wanted = student.grad((log_q_B.exp() * (log_q_B - log_p_B)).sum())
    student_BLV = student.logprob_BLV()
    batch = everything(teacher_BLV, of_tokens(student_BLV))
    objective = minillm.Config(length_normalised=False, clip=0.0)
    loss_B = losses(objective, batch, student_BLV, teacher_BLV).sum(1)
    weight_B = of_tokens(student_BLV).sum(1).exp().detach()
    found = student.grad((weight_B * loss_B).sum())
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    myopic = losses(minillm.Config(clip=0.0), batch, student.logprob_BLV(), teacher_BLV).sum(1)
    assert (student.grad((weight_B * myopic).sum()) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("on_policy", [True, False])
def test_sampled_reverse_kl_has_the_expected_gradient_of_the_exact_one(
    student, teacher_BLV, on_policy
):
    """sum_v b(v) grad[-(q(v) / b(v)) A(v)] for whatever distribution b drew the codes."""
    student_BLV = student.logprob_BLV()
    drew_BLV = (student_BLV if on_policy else Table(2).logprob_BLV()).detach()
    # All sequences hold every prefix of length t once per continuation, so V^(T - t) times.
    often_L = torch.tensor([float(V ** (T - t)) for t in range(T)])
    exact_BL = (student_BLV.exp() * (drew_BLV - teacher_BLV)).sum(-1)
    wanted = student.grad((exact_BL / often_L).sum())
    if on_policy:
        divergence_BL = reverse_kl(student.logprob_BLV(), teacher_BLV)
        torch.testing.assert_close(student.grad((divergence_BL / often_L).sum()), wanted)
    student_BLV = student.logprob_BLV()
    batch = everything(teacher_BLV, of_tokens(drew_BLV))
    loss_BL = losses(sampled_rkl.Config(), batch, student_BLV, teacher_BLV)
    chance_BL = of_tokens(drew_BLV).exp() * V / often_L
    found = student.grad((chance_BL * loss_BL).sum())
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_returns_are_discounted_sums_of_what_follows():
    reward_BL = torch.tensor([[1.0, 2.0, 4.0]])
    assert returns(reward_BL, 0.0).tolist() == [[1.0, 2.0, 4.0]]
    assert returns(reward_BL, 1.0).tolist() == [[7.0, 6.0, 4.0]]
    assert returns(reward_BL, 0.5).tolist() == [[3.0, 4.0, 4.0]]


def test_advantages_are_those_of_the_cookbook(student, teacher_BLV):
    """-kappa (log q_old - log p), discounted into the future where asked; no data, no prefix."""
    behaviour_BL = of_tokens(student.logprob_BLV()).detach()
    batch = everything(teacher_BLV, behaviour_BL, prefix=1)
    penalty_BL = -2.0 * (behaviour_BL - of_tokens(teacher_BLV))
    plain = sampled_rkl.Config(kappa=2.0).token_weights(batch, {}, SingleProcess())
    torch.testing.assert_close(plain.column["advantage"][:, 1:], penalty_BL[:, 1:])
    assert (plain.weight_BL[:, 0] == 0).all()
    far = sampled_rkl.Config(kappa=2.0, discount=0.5).token_weights(batch, {}, SingleProcess())
    wanted_B = penalty_BL[:, 1] + 0.5 * penalty_BL[:, 2]
    torch.testing.assert_close(far.column["advantage"][:, 1], wanted_B)


def test_minillm_returns_are_means_over_what_comes_after(student, teacher_BLV):
    behaviour_BL = of_tokens(student.logprob_BLV()).detach()
    batch = everything(teacher_BLV, behaviour_BL)
    reward_BL = of_tokens(teacher_BLV) - behaviour_BL
    column = minillm.Config().token_weights(batch, {}, SingleProcess()).column["return"]
    torch.testing.assert_close(column[:, 0], reward_BL[:, 1:].mean(1))
    torch.testing.assert_close(column[:, 1], reward_BL[:, 2])
    assert (column[:, 2].abs() < 1e-6).all()


def test_minillm_clips_the_ratio_and_weighs_stale_samples():
    student_NV = torch.tensor([[0.5, 0.5]] * 4).log()
    teacher_NV = torch.tensor([[0.5, 0.5]] * 4).log()
    pair = Categorical(student_NV), Categorical(teacher_NV)
    behaviour_N = torch.tensor([0.25, 0.25, 0.9, 0.9]).log()  # ratios 2, 2, 0.56, 0.56
    return_N = torch.tensor([1.0, -1.0, 1.0, -1.0])
    column = {"return": return_N, "behaviour": behaviour_N}
    token_N = torch.zeros(4, dtype=torch.long)
    given = TokenChunk("student", token_N, *pair, column)
    found_N = minillm.Config(clip=0.2).token_loss(given)
    torch.testing.assert_close(found_N, torch.tensor([-1.2, 2.0, -0.5 / 0.9, 0.8]))
    plain_N = minillm.Config(clip=0.0).token_loss(given)
    torch.testing.assert_close(plain_N, torch.tensor([-2.0, 2.0, -0.5 / 0.9, 0.5 / 0.9]))
    data = TokenChunk("data", token_N, *pair, column)
    torch.testing.assert_close(minillm.Config().token_loss(data), -student_NV[:, 0])


@pytest.mark.parametrize("prefix", [0, 1])
def test_official_minillm_returns_are_those_of_the_authors_code(student, teacher_BLV, prefix):
    """Token by token in Python floats: own reward, 0.95, remaining length, whitening, clipping."""
    behaviour_BL = of_tokens(student.logprob_BLV()).detach()
    teacher_BLV = teacher_BLV.clone()
    teacher_BLV[3, 2] -= 90.0  # a code that the teacher all but excludes
    batch = everything(teacher_BLV, behaviour_BL, prefix=prefix)
    plain = []
    for p_T, q_T in zip(of_tokens(teacher_BLV).tolist(), behaviour_BL.tolist(), strict=True):
        reward = [max(-50.0, min(50.0, p - q)) for p, q in zip(p_T, q_T, strict=True)]
        for t in range(prefix, T):
            total = sum(0.95 ** (later - t) * reward[later] for later in range(t, T))
            plain.append(total / (T - t))
    mean, spread = statistics.fmean(plain), statistics.pvariance(plain)
    wanted = torch.tensor([(x - mean) / math.sqrt(spread + 1e-8) for x in plain])
    column = (
        minillm.Config(form="official").token_weights(batch, {}, SingleProcess()).column["return"]
    )
    torch.testing.assert_close(column[:, prefix:].flatten(), wanted, atol=1e-5, rtol=1e-5)
    assert (column[:, :prefix] == 0).all()
    assert float(column.min()) < -2, "the excluded code stands out"


def test_official_minillm_whitens_rollouts_alone(student, teacher_BLV):
    """Data rows have the authors' mixture of two cross-entropies, and no part in the moments."""
    behaviour_BL = of_tokens(student.logprob_BLV()).detach()
    mixed = everything(teacher_BLV, behaviour_BL)
    count = len(SEQUENCES)
    context = ("data",) * 9 + ("student",) * (count - 9)
    prefix_B = torch.tensor([T if name == "data" else 0 for name in context])
    mixed = replace(mixed, context=context, policy=context, prefix_B=prefix_B)
    objective = minillm.Config(form="official")
    found = objective.token_weights(mixed, {}, SingleProcess()).column["return"]
    alone = objective.token_weights(mixed.rows(slice(9, count)), {}, SingleProcess()).column[
        "return"
    ]
    torch.testing.assert_close(found[9:], alone, atol=1e-6, rtol=1e-5)
    assert abs(float(alone.mean())) < 1e-5
    assert (found[:9] == 0).all()
    nothing = objective.token_weights(mixed.rows(slice(0, 9)), {}, SingleProcess()).column["return"]
    assert (nothing == 0).all()
    student_NV, teacher_NV = torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.5, 0.5]]).log()
    given = TokenChunk(
        "data", torch.tensor([1]), Categorical(student_NV), Categorical(teacher_NV), {}
    )
    wanted = -0.5 * math.log(0.8) - 0.5 * (0.5 * math.log(0.2) + 0.5 * math.log(0.8))
    assert float(objective.token_loss(given)) == pytest.approx(wanted, rel=1e-5)
    plain = minillm.Config(form="official", kd_share=0.0)
    assert float(plain.token_loss(given)) == pytest.approx(-math.log(0.8), rel=1e-5)
