"""Staggered scales: SAR's loss beside teacher forcing, and where each target ends."""

import copy
from dataclasses import replace

import pytest
import torch
from building.samplers import record_of

from learner.categorical import Categorical
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objective import TokenChunk
from learner.objectives import gkd, mle, sar

V, W = 8, 6


@pytest.fixture
def mixed(tiny, data):
    """Rows of data and staggered ones."""
    student = tiny("var", 1)
    sources = {"data": {}, "stagger": {"target": "own"}}
    return student, record_of(student, data, sources, count=8)[0]


def gradients(student, objective, batch, **config):
    """(loss, gradients by name) of one step that moves nothing."""
    learner = Learner(
        LearnerConfig.model_validate({"micro_batch": 3, "chunk_tokens": 5, **config}),
        objective,
        copy.deepcopy(student),
        seed=0,
        contexts=("data", "stagger"),
    )
    held = learner._student
    learner.update = lambda loss: (1.0, 0.0)
    loss = learner.step(batch)["loss"]
    return loss, {n: p.grad for n, p in held.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reduction", ["suffix_mean", "seq_mean", "weight_norm"])
def test_without_weight_it_is_teacher_forcing_to_the_bit(mixed, reduction):
    student, batch = mixed
    plain_loss, plain = gradients(student, mle.Config(reduction=reduction), batch)
    loss, found = gradients(student, sar.Config(sigma=0, reduction=reduction), batch)
    assert loss == plain_loss
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], grad) for name, grad in plain.items())


def test_staggered_rows_add_sigma_times_the_loss_of_their_codes(mixed, assert_same_gradients):
    """Against the formula: labels are numbers, nothing else of them has a gradient; the first scale
    has no second loss."""
    student, batch = mixed
    _, found = gradients(student, sar.Config(sigma=0.3), batch)
    own = copy.deepcopy(student).eval()
    nll_BL = (
        -own(batch.label_B, batch.input_BL, batch.plan)
        .log_softmax(-1)
        .gather(-1, batch.token_BL[..., None])[..., 0]
    )
    first = batch.plan.starts[1]
    staggered = batch.on_policy_B
    loss = 0.3 * nll_BL[staggered][:, first:].mean() * staggered.double().mean()
    loss = loss + nll_BL[~staggered].mean() * (~staggered).double().mean()
    loss.backward()
    wanted = {n: p.grad for n, p in own.named_parameters() if n in found}
    assert_same_gradients(found, wanted)


@pytest.fixture
def two_scales():
    """p(coarse), p(fine | coarse), and a student of coarse codes of its own frequencies."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return (2 * torch.randn(*shape, generator=generator, dtype=torch.double)).softmax(-1)

    return drawn(V), drawn(V, W), drawn(V)


def slope_at(objective, fixed_VW, rows, p_VW):
    """Gradient in the logits of q(. | v) at `fixed_VW` of the expected loss over rows (policy,
    context v, code, weight)."""
    logit_VW = fixed_VW.log().requires_grad_()
    total = torch.zeros((), dtype=torch.double)
    for policy in {row[0] for row in rows}:
        chosen = [row[1:] for row in rows if row[0] == policy]
        context_N, token_N = (torch.tensor([row[i] for row in chosen]) for i in (0, 1))
        weight_N = torch.tensor([row[2] for row in chosen], dtype=torch.double)
        laws = Categorical(logit_VW[context_N]), Categorical(p_VW.log()[context_N])
        total = total + (weight_N * objective.token_loss(TokenChunk(policy, token_N, *laws))).sum()
    return torch.autograd.grad(total, logit_VW)[0]


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_fixed_points_of_the_targets(two_scales, sigma, hard):
    """All contexts and codes, by their probabilities: own codes and the data's own average over
    true scales that the context does not determine, the teacher's conditional does not."""
    w_V, p_VW, a_V = two_scales
    pick_VW = torch.nn.functional.one_hot(p_VW.argmax(-1), W).double() if hard else p_VW
    data = [("data", v, u, float(w_V[v] * p_VW[v, u])) for v in range(V) for u in range(W)]
    for m_W in (w_V @ pick_VW, w_V @ p_VW):
        own = [("student", v, u, float(a_V[v] * m_W[u])) for v in range(V) for u in range(W)]
        fixed_VW = w_V[:, None] * p_VW + sigma * a_V[:, None] * m_W
        fixed_VW = fixed_VW / (w_V + sigma * a_V)[:, None]
        slope_VW = slope_at(sar.Config(sigma=sigma), fixed_VW, [*data, *own], p_VW)
        assert slope_VW.abs().max() < 1e-6
        assert slope_at(sar.Config(sigma=sigma), p_VW, [*data, *own], p_VW).abs().max() > 1e-5
        distance = 0.5 * (w_V[:, None] * (fixed_VW - p_VW)).abs().sum()
        assert distance < sigma
        teacher = gkd.Config.model_validate({"divergence": {"name": "fkl"}})
        assert slope_at(teacher, p_VW, [*data, *own], p_VW).abs().max() < 1e-12
        assert slope_at(teacher, fixed_VW, own, p_VW).abs().max() > 1e-5


def test_rows_of_any_other_law_can_be_distilled_with_a_history_of_their_own(tiny, data):
    """The learner reads truncated rows as the worker meant them."""
    student = tiny("var", 1)
    sources = {"stagger": {"history": "truncated", "target": "own"}}
    batch, *_ = record_of(student, data, sources, count=8)
    whole = replace(batch, plan=replace(batch.plan, history_B=None))
    losses = [gradients(student, sar.Config(sigma=1), of)[0] for of in (batch, whole)]
    assert abs(losses[0] - losses[1]) > 1e-4
