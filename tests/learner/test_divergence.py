"""Divergences against literal formulas in float64, their gradients, ends and truncation."""

import math

import pytest
import torch

from common.config.schema import validate
from common.errors import InputError
from learner.divergence import (
    Divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    tempered,
    total_variation,
    truncated,
)
from learner.objectives import distillm, gkd

N, V = 40, 24
NAMES = ["fkl", "rkl", "jsd", "tvd", "skl", "srkl", "mix"]


@pytest.fixture
def logit_NV():
    return torch.randn(N, V, generator=torch.Generator().manual_seed(3)).requires_grad_()


@pytest.fixture
def teacher_NV():
    return (2 * torch.randn(N, V, generator=torch.Generator().manual_seed(4))).log_softmax(-1)


def made(**fields):
    return Divergence.model_validate(fields)


def kl(a, b):
    return (a * (a / b).log()).sum(-1)


LITERAL = {
    "fkl": lambda q, p: kl(p, q),
    "rkl": lambda q, p: kl(q, p),
    "jsd": lambda q, p: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
    "tvd": lambda q, p: 0.5 * (p - q).abs().sum(-1),
    "skl": lambda q, p: kl(p, 0.1 * p + 0.9 * q),
    "srkl": lambda q, p: kl(q, 0.9 * p + 0.1 * q),
    "mix": lambda q, p: 0.2 * kl(q, p) + 0.8 * kl(p, q),
}


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_formula(name, logit_NV, teacher_NV):
    ours = made(name=name, beta=0.3, alpha=0.1, rkl_share=0.2)
    value_N = ours(logit_NV.log_softmax(-1), teacher_NV)
    (found,) = torch.autograd.grad(value_N.sum(), logit_NV)
    exact_NV = logit_NV.detach().double().requires_grad_()
    wanted_N = LITERAL[name](exact_NV.softmax(-1), teacher_NV.double().exp())
    (wanted,) = torch.autograd.grad(wanted_N.sum(), exact_NV)
    torch.testing.assert_close(value_N.double(), wanted_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)
    assert value_N.min() > 0


def test_gradients_have_the_score_function_form(logit_NV, teacher_NV):
    """docs/method.md, "Baselines": E_{v~p}[-grad log q], and E_{v~q}[(log q - log p) grad log
    q]."""
    student_NV = logit_NV.log_softmax(-1)
    p_NV, q_NV = teacher_NV.exp(), student_NV.detach().exp()
    surrogate = {
        forward_kl: -(p_NV * student_NV),
        reverse_kl: q_NV * (student_NV.detach() - teacher_NV) * student_NV,
    }
    for divergence, terms in surrogate.items():
        value = divergence(student_NV, teacher_NV).sum()
        (found,) = torch.autograd.grad(value, logit_NV, retain_graph=True)
        (wanted,) = torch.autograd.grad(terms.sum(), logit_NV, retain_graph=True)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_jsd_has_exact_ends_and_tends_to_them(logit_NV, teacher_NV):
    student_NV = logit_NV.detach().log_softmax(-1)
    for beta, end in ((0.0, forward_kl), (1.0, reverse_kl)):
        whole = Divergence(name="jsd", beta=beta)(student_NV, teacher_NV)
        assert torch.equal(whole, end(student_NV, teacher_NV))
        near = abs(beta - 1e-4)
        scale = near if beta == 0 else 1 - near
        limit = jensen_shannon(student_NV.double(), teacher_NV.double(), near) / scale
        torch.testing.assert_close(limit, end(student_NV, teacher_NV).double(), rtol=0.02, atol=0.0)


def test_total_variation_is_the_rejection_of_speculative_decoding(logit_NV, teacher_NV):
    student_NV = logit_NV.detach().log_softmax(-1)
    accepted_N = torch.minimum(student_NV.exp(), teacher_NV.exp()).sum(-1)
    torch.testing.assert_close(1 - total_variation(student_NV, teacher_NV), accepted_N)


def test_tempered_is_the_softmax_of_divided_logits(logit_NV):
    student_NV = logit_NV.log_softmax(-1)
    wanted = (logit_NV / 2.5).log_softmax(-1)
    torch.testing.assert_close(tempered(student_NV, 2.5), wanted, atol=1e-6, rtol=1e-5)
    assert tempered(student_NV, 1.0) is student_NV


def test_the_tail_makes_a_truncated_divergence_a_coarser_one(logit_NV, teacher_NV):
    student_NV = logit_NV.log_softmax(-1)
    best = teacher_NV[0].topk(4).indices
    rest = [v for v in range(V) if v not in best.tolist()]
    student, teacher = truncated(student_NV, teacher_NV, 4, tail=True)
    for coarse, fine in ((student[0], student_NV[0]), (teacher[0], teacher_NV[0])):
        wanted = torch.cat([fine[best], fine[rest].logsumexp(0, keepdim=True)])
        torch.testing.assert_close(coarse, wanted)
    for name in NAMES:
        short = made(name=name, top_k=4)(student_NV, teacher_NV)
        full = made(name=name)(student_NV, teacher_NV)
        assert (short <= full + 1e-5).all()
        torch.autograd.grad(short.sum(), logit_NV, retain_graph=True)
    whole = Divergence(name="rkl", top_k=V, tail=True)(student_NV, teacher_NV)
    assert torch.equal(whole, reverse_kl(student_NV, teacher_NV))


def test_without_the_tail_only_the_compared_codes_count(logit_NV, teacher_NV):
    student_NV = logit_NV.detach().log_softmax(-1)
    best = teacher_NV[0].topk(4).indices
    found = Divergence(name="tvd", top_k=4, tail=False)(student_NV, teacher_NV)[0]
    wanted = 0.5 * (teacher_NV[0, best].exp() - student_NV[0, best].exp()).abs().sum()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


BELOW_ZERO = [
    {"name": "fkl"},
    {"name": "rkl"},
    {"name": "skl"},
    {"name": "srkl"},
    {"name": "jsd", "beta": 0.0},
    {"name": "jsd", "beta": 1.0},
    {"name": "mix", "rkl_share": 0.25},
]
NEVER_BELOW = [{"name": "tvd"}, {"name": "jsd", "beta": 0.1}, {"name": "mix", "rkl_share": 0.5}]


@pytest.mark.parametrize("fields", [*BELOW_ZERO, *NEVER_BELOW])
def test_a_divergence_that_can_go_below_zero_without_its_tail_is_refused_without_it(fields):
    """One code of two, for every teacher and student mass on it from 0.01 to 0.99."""
    mass = torch.linspace(0.01, 0.99, 99)
    grid = torch.cartesian_prod(mass, mass)
    student, teacher = (torch.stack([m, 1 - m], 1).log() for m in grid.unbind(1))
    pair = truncated(student, teacher, 1, tail=False)
    tree = {"divergence": {**fields, "top_k": 1, "tail": False}}
    assert (made(**fields, top_k=1)(student, teacher) >= -1e-6).all()
    if fields in NEVER_BELOW:
        config = validate(gkd.Config, tree, source="run.toml")
        value = config.divergence(student, teacher)
        torch.testing.assert_close(value, made(**fields)(*pair), atol=1e-7, rtol=1e-6)
        assert (value >= -1e-6).all()
        torch.testing.assert_close(value.view(99, 99).argmin(1), torch.arange(99))
        return
    assert (made(**fields)(*pair) < -0.01).any()
    with pytest.raises(InputError, match=r"divergence: .*goes below 0.*set tail=true"):
        validate(gkd.Config, tree, source="run.toml")


def test_leaving_the_compared_codes_pays_without_a_tail(teacher_NV):
    best_Nk = teacher_NV.topk(4, dim=-1).indices
    lower_NV = teacher_NV.scatter_add(-1, best_Nk, torch.full(best_Nk.shape, -1.0))
    leaving_NV = lower_NV.log_softmax(-1)
    pair = truncated(leaving_NV, teacher_NV, 4, tail=False)
    assert (reverse_kl(*pair) < 0).all()
    assert (Divergence(name="rkl", top_k=4)(leaving_NV, teacher_NV) > 0).all()


def test_nothing_is_lost_where_probabilities_are_tiny():
    student = torch.tensor([[0.0, -200.0]]).log_softmax(-1)
    teacher = torch.tensor([[-200.0, 0.0]]).log_softmax(-1)
    expected = {"fkl": 200.0, "rkl": 200.0, "tvd": 1.0, "jsd": math.log(2), "mix": 200.0}
    for name, value in expected.items():
        assert float(made(name=name)(student, teacher)) == pytest.approx(value)


def test_one_field_of_a_divergence_leaves_the_objectives_others():
    skewed = distillm.Config.model_validate({"divergence": {"alpha": 0.2}})
    assert skewed.divergence == Divergence(name="skl", alpha=0.2)
    assert gkd.Config.model_validate({"divergence": {"beta": 0}}).divergence.name == "jsd"
