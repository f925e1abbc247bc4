"""SequenceMatch on tables: the form that it is derived from, and where it ends."""

from pathlib import Path

import pytest
import torch
from building.tables import Table, rollouts

from common.errors import InputError
from deploy.run_folder.opening import open_run
from learner.categorical import Categorical
from learner.objective import TokenChunk
from learner.objectives import mle, sequencematch
from learner.process_group import SingleProcess

V, T = 4, 3


def loss_B(objective, table, policy="data"):
    """Of all sequences, summed over slots; logits stay as they are, not normalised."""
    token_BL = table.sequences
    number_B, logits = torch.zeros(len(token_BL), dtype=torch.long), []
    for t, rows in enumerate(table.rows):
        logits.append(rows[number_B])
        number_B = number_B * V + token_BL[:, t]
    logit_BLV = torch.stack(logits, 1)
    batch = rollouts(token_BL, torch.zeros(token_BL.shape), V)
    weights = objective.token_weights(batch, {}, SingleProcess())
    column = {name: value.flatten() for name, value in weights.column.items()}
    given = (Categorical(logit_BLV.flatten(0, 1)), None, column, (T,) * len(token_BL))
    chunk = TokenChunk(policy, token_BL.flatten(), *given)
    return objective.token_loss(chunk).view_as(token_BL).sum(1), logit_BLV


def expectations(config, student, data_B):
    """(what the objective minimises at shares of one half, the IQ form), sums over slots."""
    q_B = student.probability_B().detach()
    of_data, logit_BLV = loss_B(config, student, "data")
    of_student, _ = loss_B(config, student, "student")
    ours = (data_B * of_data).sum() + (q_B * of_student).sum()
    gamma, alpha = config.gamma, config.alpha
    value_BL = logit_BLV.logsumexp(-1)
    next_BL = torch.cat([value_BL[:, 1:], torch.zeros(len(value_BL), 1)], 1)
    own_BL = logit_BLV.gather(-1, student.sequences[..., None])[..., 0]
    discount_L = gamma ** torch.arange(T)
    residual_BL = own_BL - gamma * next_BL
    mixed_B = 0.5 * (data_B + q_B)
    iq = (data_B * (discount_L * residual_BL).sum(1)).sum()
    iq = iq - (mixed_B * (discount_L * (value_BL - gamma * next_BL)).sum(1)).sum()
    iq = iq - alpha / 4 * (mixed_B * (discount_L * residual_BL.square()).sum(1)).sum()
    return ours, -iq


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_it_is_the_inverse_reinforcement_form(gamma):
    """Values and gradients, no gradient through what the student sampled."""
    student, data_B = Table(0, V, T), Table(1, V, T).probability_B().detach()
    config = sequencematch.Config(alpha=0.3, gamma=gamma)
    ours, iq = expectations(config, student, data_B)
    torch.testing.assert_close(ours, iq, atol=1e-6, rtol=1e-6)
    grad = student.grad(ours)
    _, iq = expectations(config, student, data_B)
    torch.testing.assert_close(grad, student.grad(iq), atol=1e-6, rtol=1e-5)


def test_without_residuals_it_is_maximum_likelihood():
    student = Table(0, V, T)
    ours, _ = loss_B(sequencematch.Config(alpha=0.0), student)
    plain, _ = loss_B(mle.Config(), student)
    assert torch.equal(ours, plain)
    early, _ = loss_B(sequencematch.Config(alpha=0.0, gamma=0.5), student)
    wanted_B = -(student.logprob_BL() * 0.5 ** torch.arange(T)).sum(1)
    torch.testing.assert_close(early, wanted_B, atol=1e-6, rtol=1e-6)


def test_a_constant_in_all_logits_is_seen_by_the_residuals_alone():
    config, student, moved = sequencematch.Config(alpha=0.2), Table(0, V, T), Table(0, V, T)
    moved.rows = [(rows.detach() + 1.5).requires_grad_() for rows in moved.rows]
    before, _ = loss_B(sequencematch.Config(alpha=0.0), student)
    after, _ = loss_B(sequencematch.Config(alpha=0.0), moved)
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(loss_B(config, student)[0], loss_B(config, moved)[0])


def test_the_stronger_the_residuals_the_flatter_the_student():
    """Trained on exact expectations; the distance from the data grows about tenfold with alpha."""
    data_B = Table(1, V, T).probability_B().detach()
    apart, entropy = {}, {}
    for alpha in (0.01, 0.1, 1.0):
        student = Table(0, V, T)
        optimizer = torch.optim.Adam(student.rows, lr=0.1, betas=(0.9, 0.99))
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
        for _ in range(500):
            optimizer.zero_grad()
            expectations(sequencematch.Config(alpha=alpha), student, data_B)[0].backward()
            optimizer.step()
            rate.step()
        q_B = student.probability_B().detach()
        apart[alpha] = float(0.5 * (q_B - data_B).abs().sum())
        entropy[alpha] = float(-(q_B * q_B.log()).sum())
    assert apart[0.01] < 0.01 < apart[0.1] < 0.05 < apart[1.0]
    assert entropy[0.01] < entropy[0.1] < entropy[1.0]


REFUSED = {
    "decodes several slots at a time": ("smoke_var", ()),
    "has rollouts alone": ("smoke", ("contexts.sources.data.ratio=0",)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_it_cannot_learn_from_is_refused(message, tmp_path):
    name, overrides = REFUSED[message]
    with pytest.raises(InputError, match=message):
        open_run(Path(name), ["objective.kind=sequencematch", *overrides], tmp_path)
