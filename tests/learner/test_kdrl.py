"""KDRL against exact expectations over all sequences of tables (docs/method.md, "Rewards")."""

import itertools

import pytest
import torch
from building.tables import Table, rollouts

from common.errors import InputError
from learner.beta import BetaConfig
from learner.categorical import Categorical
from learner.objective import TokenChunk
from learner.objectives import kdrl, sampled_rkl
from learner.policy_gradient import k1, k2, k3
from learner.process_group import SingleProcess

V, T = 4, 3
PLAIN = {"clip": 0.0, "advantage": {"std": "none"}}


def loss_B(objective, student, teacher, token_BL, reward_B, group=None, behaviour_BL=None):
    """Losses of rows through `token_weights` and one chunk, summed over slots."""
    student_BLV, teacher_BLV = (table.logprob_BLV(token_BL) for table in (student, teacher))
    own_BL = student_BLV.gather(-1, token_BL[..., None])[..., 0]
    batch = rollouts(
        token_BL,
        own_BL if behaviour_BL is None else behaviour_BL,
        V,
        group=group or len(token_BL),
        sequence={"good": reward_B},
        signal={"token_logprob": teacher.logprob_BL(token_BL).detach()},
    )
    weights = objective.token_weights(batch, {}, SingleProcess())
    column = {name: value.flatten() for name, value in weights.column.items()}
    laws = Categorical(student_BLV.flatten(0, 1)), Categorical(teacher_BLV.detach().flatten(0, 1))
    loss_N = objective.token_loss(TokenChunk("student", token_BL.flatten(), *laws, column))
    return (weights.weight_BL * loss_N.view_as(token_BL)).sum(1)


def built(**given):
    return kdrl.Config.model_validate({"rewards": {"good": 1.0}, **given}).build(None)


@pytest.fixture
def student():
    return Table(0, V, T)


@pytest.fixture
def teacher():
    return Table(1, V, T)


@pytest.fixture
def reward_B():
    return torch.randn(V**T, generator=torch.Generator().manual_seed(2), dtype=torch.double)


def test_what_estimators_of_a_divergence_estimate():
    """Rows of the table, exact: values and gradients in logits, 16 codes."""
    generator = torch.Generator().manual_seed(0)
    logit_V = torch.randn(16, generator=generator, dtype=torch.double).requires_grad_()
    p_V = torch.randn(16, generator=generator, dtype=torch.double).log_softmax(-1)

    def gradient(value):
        return torch.autograd.grad(value, logit_V, retain_graph=True)[0]

    q_V = logit_V.log_softmax(-1)
    chance_V = q_V.exp().detach()
    reverse, forward = (q_V.exp() * (q_V - p_V)).sum(), (p_V.exp() * (p_V - q_V)).sum()
    mean = {
        name: (chance_V * estimate(q_V, p_V)).sum()
        for name, estimate in (("k1", k1), ("k2", k2), ("k3", k3))
    }
    assert gradient(mean["k1"]).abs().max() < 1e-10
    torch.testing.assert_close(gradient(mean["k2"]), gradient(reverse), atol=1e-10, rtol=0)
    torch.testing.assert_close(gradient(mean["k3"]), gradient(forward), atol=1e-10, rtol=0)
    assert (gradient(mean["k3"]) - gradient(reverse)).norm() > 0.05
    torch.testing.assert_close(mean["k1"], reverse, atol=1e-12, rtol=0)
    torch.testing.assert_close(mean["k3"], reverse, atol=1e-12, rtol=0)
    assert (mean["k2"] - reverse).abs() > 0.05, "not to be plotted as a divergence"


def trained(objective, student, teacher, reward_B, steps=700):
    """Where exact expectations over all sequences lead."""
    optimizer = torch.optim.Adam(student.rows, lr=0.1, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        chance_B = student.probability_B().detach()
        value = loss_B(objective, student, teacher, student.sequences, reward_B)
        (chance_B * value).sum().backward()
        optimizer.step()
        rate.step()
    return student.probability_B().detach()


@pytest.mark.parametrize("kd", ["k1", "full_rkl"])
def test_sequences_end_at_the_exact_tilt(student, teacher, reward_B, kd):
    beta = 0.3
    tilt_B = (teacher.probability_B().log() + reward_B / beta).softmax(0).detach()
    objective = built(kd=kd, beta=beta, sequence_level=True, **PLAIN)
    found_B = trained(objective, student, teacher, reward_B)
    assert 0.5 * (found_B - tilt_B).abs().sum() < 1e-3


def test_one_token_at_a_time_overshoots_the_tilt(student, teacher, reward_B):
    """As published: the reward looks at whole sequences, the teacher at single codes."""
    beta = 0.3
    tilt_B = (teacher.probability_B().log() + reward_B / beta).softmax(0).detach()
    found_B = trained(built(kd="k2", beta=beta, **PLAIN), student, teacher, reward_B)
    assert 0.5 * (found_B - tilt_B).abs().sum() > 0.02
    assert (found_B * reward_B).sum() > (tilt_B * reward_B).sum()


def test_groups_divided_by_their_own_spread_let_the_student_collapse(teacher):
    """Sampled groups of 8: with beta constant and reward / sigma the teacher's part vanishes."""
    reward_B = torch.randn(V**T, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    entropy = {}
    for std in ("group", "none"):
        student, generator = Table(0, V, T), torch.Generator().manual_seed(5)
        objective = built(kd="full_rkl", beta=0.3, clip=0.0, advantage={"std": std})
        optimizer = torch.optim.Adam(student.rows, lr=0.1)
        for _ in range(250):
            chance_B = student.probability_B().detach()
            drawn = torch.multinomial(chance_B, 128, replacement=True, generator=generator)
            value = loss_B(
                objective, student, teacher, student.sequences[drawn], reward_B[drawn], 8
            )
            optimizer.zero_grad()
            value.mean().backward()
            optimizer.step()
        q_B = student.probability_B().detach()
        entropy[std] = float(-(q_B * q_B.log()).sum())
    assert entropy["group"] < 0.1 < entropy["none"]


def test_the_expected_gradient_of_pairs_is_half_the_exact_one(student, teacher, reward_B):
    """(1 - 1/G) for groups of G = 2, over all pairs of sequences, each with its probability."""
    exact = student.grad(-(student.probability_B() * reward_B).sum())
    sequences = len(student.sequences)
    pairs = torch.tensor(list(itertools.product(range(sequences), repeat=2)))
    chance_B = student.probability_B().detach()
    objective, drawn = built(beta=0.0, **PLAIN), pairs.flatten()
    value = loss_B(objective, student, teacher, student.sequences[drawn], reward_B[drawn], 2)
    weighted = (chance_B[pairs].prod(1) * value.view(-1, 2).mean(1)).sum()
    torch.testing.assert_close(student.grad(weighted), 0.5 * exact, atol=1e-7, rtol=1e-5)


def test_without_reward_it_is_the_sampled_reverse_divergence(student, teacher):
    """k2 and k1 have its expected gradient, and that of single samples for k1."""
    nothing_B = torch.zeros(V**T, dtype=torch.double)
    chance_B = student.probability_B().detach()

    def gradient(objective):
        value = loss_B(objective, student, teacher, student.sequences, nothing_B)
        return student.grad((chance_B * value).sum())

    wanted = gradient(sampled_rkl.Config())
    for kd in ("k1", "k2", "full_rkl"):
        found = gradient(built(kd=kd, beta=1.0, **PLAIN))
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert (gradient(built(kd="k3", beta=1.0, **PLAIN)) - wanted).abs().max() > 1e-2


def test_equal_rewards_and_no_teacher_give_exactly_nothing(student, teacher):
    for std in ("group", "batch", "none"):
        objective = built(beta=0.0, advantage={"std": std})
        equal_B = torch.full((V**T,), 0.1, dtype=torch.double)
        value = loss_B(objective, student, teacher, student.sequences, equal_B, 8)
        assert value.requires_grad is False or float(student.grad(value.sum()).abs().max()) == 0


@pytest.mark.parametrize("kd", ["full_rkl", "full_fkl", "k1", "k2", "k3"])
def test_every_chunk_has_a_gradient_whoever_sampled_it(student, teacher, kd):
    """If only 0: plans try rows of every policy, also of those without a loss."""
    token_BL = student.sequences[:2]
    laws = [Categorical(table.logprob_BLV(token_BL).flatten(0, 1)) for table in (student, teacher)]
    column = dict.fromkeys(("advantage", "behaviour", "beta", "ahead"), torch.zeros(2 * T))
    for policy in ("student", "data"):
        chunk = TokenChunk(policy, token_BL.flatten(), *laws, column)
        objective = built(kd=kd)
        assert objective.token_loss(chunk).requires_grad
        for part in objective.parts().values():
            assert part.token_loss(chunk).requires_grad


def test_the_divergence_is_told_apart_from_the_reward(student, teacher):
    """Exact, on rollouts alone, whatever distils."""
    token_BL, column = student.sequences, {"inner.x": torch.zeros(V**T * T)}
    student_BLV, teacher_BLV = (table.logprob_BLV(token_BL) for table in (student, teacher))
    wanted_BL = (student_BLV.exp() * (student_BLV - teacher_BLV)).sum(-1)
    laws = Categorical(student_BLV.flatten(0, 1)), Categorical(teacher_BLV.flatten(0, 1))
    for how in ({"kd": "k2"}, {"kd": "full_fkl"}, {"inner": {"kind": "distillspec"}}):
        objective = built(**how)
        assert "reverse_kl" in objective.config.observes()
        for policy in ("student", "data"):
            chunk = TokenChunk(policy, token_BL.flatten(), *laws, column)
            found = objective.diagnostics(chunk)
            assert found.keys() <= set(objective.config.observes())
            assert ("reverse_kl" in found) == (policy == "student")
            if policy == "student":
                torch.testing.assert_close(found["reverse_kl"], wanted_BL.flatten())


def test_beta_follows_its_schedule():
    falling = BetaConfig(beta=5e-3, schedule="anneal", beta_min=1e-3, decay=5e-5)
    for step in (0, 1, 40, 80, 200):
        wanted = max(5e-3 - 5e-5 * step, 1e-3)
        assert falling.weights_at(step) == (1.0, pytest.approx(wanted, abs=1e-15))
    assert BetaConfig(beta=0.1).weights_at(10**6) == (1.0, 0.1)
    switch = BetaConfig(beta=1.0, schedule="switch", switch_step=3)
    assert [switch.weights_at(step) for step in (0, 2, 3, 9)] == [(0, 1)] * 2 + [(1, 0)] * 2


def test_after_a_switch_the_teacher_is_not_heard(student, teacher, reward_B):
    objective, state = built(schedule="switch", switch_step=2, beta=0.5), {}
    batch = rollouts(
        student.sequences, student.logprob_BL(), V, group=8, sequence={"good": reward_B}
    )
    seen = [objective.token_weights(batch, state, SingleProcess()) for _ in range(4)]
    assert [bool(weights.column["beta"].any()) for weights in seen] == [True, True, False, False]
    heard = [bool(weights.column["advantage"].any()) for weights in seen]
    assert heard == [False, False, True, True]
    assert [float(weights.column["beta"].max()) for weights in seen] == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(("mask", "distilled"), [("none", 8), ("response", 3), ("group", 4)])
def test_masks_leave_out_what_did_well_and_no_denominator(student, teacher, mask, distilled):
    good_B = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0]).double()
    if mask == "response":
        good_B = torch.tensor([1.0, 1, 1, 0, 1, 1, 0, 0]).double()
    batch = rollouts(
        student.sequences[:8],
        student.logprob_BL()[:8],
        V,
        group=4,
        sequence={"good": good_B},
    )
    objective = built(mask=mask, correct=0.5 if mask == "group" else None, beta=1.0)
    weights = objective.token_weights(batch, {}, SingleProcess())
    assert int(weights.column["beta"].any(1).sum()) == distilled
    assert weights.support_BL.all()


BAD = {
    "reduction is weight_norm": {"reduction": "weight_norm"},
    "set kd to k1 or full_rkl": {"sequence_level": True},
    "set correct to the least reward": {"mask": "group"},
    "give one of them": {"kd": "k1", "inner": {"kind": "gkd"}},
    "inner.kind=kdrl is not a loss of students": {"inner": {"kind": "kdrl"}},
    "inner.kind=dd1 is not a loss of students": {"inner": {"kind": "dd1"}},
    "or takes samples for labels": {"inner": {"kind": "sar"}},
    "inner.reduction is seq_mean": {"inner": {"kind": "gkd", "reduction": "seq_mean"}},
}


@pytest.mark.parametrize("message", BAD)
def test_parts_that_do_not_fit_are_refused(message):
    with pytest.raises(ValueError, match=message):
        built(**BAD[message])


def test_a_reward_that_nobody_writes_is_refused_by_name(student):
    batch = rollouts(student.sequences, student.logprob_BL(), V, group=8, sequence={})
    with pytest.raises(InputError, match=r"objective\.rewards has good, but the records hold no"):
        built().token_weights(batch, {}, SingleProcess())
