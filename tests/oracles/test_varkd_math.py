"""The oracle itself: definitions, gradients by hand and small cases that one can count."""

import math

import pytest
import torch
from varkd_math import cluster_logprobs, confidence, divergence, gate, varkd_loss

B, T, V, C = 3, 36, 64, 16


@pytest.fixture
def zs():
    return torch.randn(B, T, V).requires_grad_()


@pytest.fixture
def zt():
    return 2 * torch.randn(B, T, V)


@pytest.fixture
def cluster_V():
    return torch.cat([torch.arange(C), torch.randint(C, (V - C,))])[torch.randperm(V)]


def test_a_cluster_has_the_probability_of_its_codes(zs, cluster_V):
    ls = zs.log_softmax(-1)
    found = cluster_logprobs(ls, cluster_V, C)
    wanted = torch.stack([torch.logsumexp(ls[..., cluster_V == c], -1) for c in range(C)], -1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(B, T))
    each = cluster_logprobs(ls, torch.arange(V), V)  # every code alone is no relaxation
    torch.testing.assert_close(each, ls, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["fkl", "rkl", "jsd", "tvd"])
def test_coarser_codes_never_diverge_more(zs, zt, cluster_V, kind):
    """The data-processing inequality."""
    ls, lt = zs.log_softmax(-1), zt.log_softmax(-1)
    coarse = [cluster_logprobs(each, cluster_V, C) for each in (ls, lt)]
    assert (divergence(*coarse, kind) <= divergence(ls, lt, kind) + 1e-5).all()
    assert (divergence(*coarse, kind) > 0).all()


@pytest.mark.parametrize("kind", ["fkl", "rkl", "jsd"])
def test_gradients_are_those_derived_by_hand(zs, zt, cluster_V, kind):
    student = cluster_logprobs(zs.log_softmax(-1), cluster_V, C)
    lp = cluster_logprobs(zt.log_softmax(-1), cluster_V, C)
    (found,) = torch.autograd.grad(divergence(student, lp, kind).sum(), zs)
    q, lq = zs.softmax(-1).detach(), student.detach()
    half = lq - torch.logaddexp(lp, lq) + math.log(2)
    wanted = {
        "fkl": lambda: q * (1 - (lp - lq).exp()[..., cluster_V]),
        "rkl": lambda: q * ((lq - lp)[..., cluster_V] - divergence(lq, lp, "rkl")[..., None]),
        "jsd": lambda: 0.5 * q * (half[..., cluster_V] - (lq.exp() * half).sum(-1, keepdim=True)),
    }[kind]()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_the_first_unsure_position_of_the_suffix_closes_what_follows():
    alpha = torch.tensor([[0.05, 0.5, 0.4, 0.05, 0.6, 0.7]])
    suffix = torch.tensor([[False, True, True, True, True, True]])
    weight, is_open = gate(alpha, suffix)
    torch.testing.assert_close(weight, torch.tensor([[0, 0.5, 0.4, 0.05, 0, 0]]))
    assert is_open.tolist() == [[False, True, True, True, False, False]]
    weight, _ = gate(alpha, suffix, keep_hit=False)
    torch.testing.assert_close(weight, torch.tensor([[0, 0.5, 0.4, 0, 0, 0]]))


def test_confidence_goes_from_chance_to_certainty():
    alike = torch.zeros(1, 1, V).log_softmax(-1)
    sure = torch.full((1, 1, V), -100.0).index_fill(-1, torch.tensor(3), 0.0)
    torch.testing.assert_close(confidence(alike), torch.zeros(1, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(confidence(sure), torch.ones(1, 1))


def test_prefixes_have_no_gradient_and_a_copy_of_the_teacher_no_loss(zs, zt, cluster_V):
    k = torch.tensor([9, 18, 27])
    prefix = torch.arange(T)[None] < k[:, None]
    loss, _ = varkd_loss(zs, zt, k, cluster_V, C, tau=0.0)
    (gradient,) = torch.autograd.grad(loss, zs)
    assert (gradient[prefix] == 0).all()
    assert (gradient[~prefix] != 0).any(-1).all()
    copied, _ = varkd_loss(zt.clone(), zt, k, cluster_V, C)
    assert abs(float(copied)) < 1e-6
