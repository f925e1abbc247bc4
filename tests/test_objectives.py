"""Contracts of every objective, and VarKD against the team's oracle and closed forms."""

import importlib.util
import math

import pytest
import torch

from common.plugins import kinds, load_plugin
from learner.divergence import forward_kl, jensen_shannon, reverse_kl
from learner.gate import confidence, first_hit
from learner.objective import TokenChunk
from learner.relaxation import (
    ClusterMap,
    RelaxationConfig,
    cluster_codebook,
    cluster_logprob,
    number_by_first_code,
)

V, C, N = 24, 7, 40


@pytest.fixture(params=kinds("learner.objectives"))
def objective(request):
    return load_plugin("learner.objectives", request.param).Config()


@pytest.fixture
def clusters():
    generator = torch.Generator().manual_seed(0)
    label_V = torch.cat([torch.arange(C), torch.randint(C, (V - C,), generator=generator)])
    return ClusterMap(label_V, C)


def logprobs(seed, *shape, sharp=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(*shape, generator=generator)).log_softmax(-1)


def chunk(student_NV, teacher_NV, clusters, context="student"):
    token_N = torch.arange(len(student_NV)) % V
    return TokenChunk(context, token_N, student_NV, teacher_NV, clusters)


def test_kind_is_the_file_name(objective):
    assert type(objective).__module__ == f"learner.objectives.{objective.kind}"


@pytest.mark.parametrize("context", ["data", "student"])
def test_loss_is_finite_with_a_gradient(objective, clusters, context):
    student_NV = logprobs(0, N, V).requires_grad_()
    loss_N = objective(chunk(student_NV, logprobs(1, N, V), clusters, context))
    loss_N.sum().backward()
    assert loss_N.shape == (N,)
    assert torch.isfinite(loss_N).all()
    assert student_NV.grad.abs().sum() > 0


@pytest.mark.parametrize("context", ["data", "student"])
def test_student_equal_to_teacher_gives_zero(objective, clusters, context):
    if not objective.needs_teacher:
        pytest.skip("maximum likelihood does not look at the teacher")
    same_NV = logprobs(0, N, V)
    logit_NV = same_NV.clone().requires_grad_()
    loss_N = objective(chunk(logit_NV.log_softmax(-1), same_NV, clusters, context))
    loss_N.sum().backward()
    torch.testing.assert_close(loss_N, torch.zeros(N), atol=1e-6, rtol=0)
    torch.testing.assert_close(logit_NV.grad, torch.zeros(N, V), atol=1e-6, rtol=0)


def test_relaxed_gradients_have_their_closed_forms(clusters):
    """method.md 2.4: the three formulas for dL/dz of the relaxed divergences."""
    logit_NV = torch.randn(N, V, generator=torch.Generator().manual_seed(3)).requires_grad_()
    teacher_NV = logprobs(4, N, V)
    q_NV = logit_NV.detach().softmax(-1)
    student_NC = cluster_logprob(logit_NV.log_softmax(-1), clusters)
    p_NC, big_q = cluster_logprob(teacher_NV, clusters), student_NC.detach()
    f = clusters.cluster_V
    kl_N1 = reverse_kl(big_q, p_NC)[:, None]
    mixture = torch.logaddexp(p_NC, big_q) - math.log(2)
    towards = big_q - mixture
    expected = {
        reverse_kl: q_NV * ((big_q - p_NC)[:, f] - kl_N1),
        forward_kl: q_NV * (1 - (p_NC - big_q).exp()[:, f]),
        lambda q, p: jensen_shannon(q, p, 0.5): 0.5
        * q_NV
        * (towards[:, f] - (big_q.exp() * towards).sum(-1, keepdim=True)),
    }
    for divergence, wanted in expected.items():
        value = divergence(student_NC, p_NC).sum()
        (found,) = torch.autograd.grad(value, logit_NV, retain_graph=True)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_relaxation_can_only_lose_information(clusters):
    student, teacher = logprobs(0, N, V), logprobs(1, N, V)
    relaxed = cluster_logprob(student, clusters), cluster_logprob(teacher, clusters)
    torch.testing.assert_close(relaxed[0].exp().sum(-1), torch.ones(N))
    for divergence in (forward_kl, reverse_kl):
        assert (divergence(*relaxed) <= divergence(student, teacher) + 1e-5).all()
        assert (divergence(*relaxed) < divergence(student, teacher) - 1e-3).any()


def test_one_code_per_cluster_changes_no_bit():
    identity = ClusterMap(torch.arange(V), V)
    student_NV = logprobs(0, N, V).requires_grad_()
    relaxed = cluster_logprob(student_NV, identity)
    assert torch.equal(relaxed, student_NV)
    (grad,) = torch.autograd.grad(reverse_kl(relaxed, logprobs(1, N, V)).sum(), student_NV)
    (plain,) = torch.autograd.grad(reverse_kl(student_NV, logprobs(1, N, V)).sum(), student_NV)
    assert torch.equal(grad, plain)


def test_tiny_cluster_mass_does_not_underflow():
    logit = torch.zeros(1, 4)
    logit[0, 2:] = -150.0
    clusters = ClusterMap(torch.tensor([0, 0, 1, 1]), 2)
    found = cluster_logprob(logit.log_softmax(-1), clusters)
    assert float(found[0, 1]) == pytest.approx(-150.0, abs=1e-3)


def test_codebook_clusters_cover_the_codebook_and_are_canonical():
    codes = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    clusters = cluster_codebook(codes, RelaxationConfig(factor=4))
    assert clusters is not None
    assert clusters.size == 16
    assert torch.bincount(clusters.cluster_V, minlength=16).min() >= 1
    shuffled = number_by_first_code((clusters.cluster_V * 7 + 3) % 101)
    assert shuffled.digest == clusters.digest
    assert cluster_codebook(codes, RelaxationConfig(factor=1)) is None
    with pytest.raises(ValueError, match=r"relaxation\.factor is 64"):
        cluster_codebook(codes, RelaxationConfig(factor=64))


def test_gate_closes_strictly_after_the_first_hit_in_the_suffix():
    alpha = torch.tensor([[0.05, 0.5, 0.4, 0.05, 0.6, 0.7]])
    suffix = torch.tensor([[False, True, True, True, True, True]])
    kept = first_hit(alpha, suffix, 0.1, keep_hit=True)
    assert kept.tolist() == [[False, True, True, True, False, False]]
    dropped = first_hit(alpha, suffix, 0.1, keep_hit=False)
    assert dropped.tolist() == [[False, True, True, False, False, False]]
    assert first_hit(alpha - 1, suffix, 0.0, keep_hit=True).equal(suffix)
    uniform = confidence(torch.tensor([[math.log(V)]]), V)
    torch.testing.assert_close(uniform, torch.zeros(1, 1), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def oracle(shared):
    """The team's reference implementation, loaded from where it lies."""
    found = importlib.util.spec_from_file_location("oracle", shared / "design" / "varkd_math.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("reduction", ["suffix_mean", "seq_mean", "weight_norm"])
@pytest.mark.parametrize("kind", ["rkl", "fkl", "jsd"])
def test_loss_equals_the_oracle(oracle, tiny, sampled, kind, reduction):
    """Everything at once on student rows: gate, weight, relaxation, reduction."""
    from learner.divergence import Divergence
    from learner.gate import GateConfig
    from learner.objective import coefficients
    from learner.objectives import varkd

    student, teacher = tiny("llamagen", 0), tiny("llamagen", 1)
    batch = sampled(student).rows(slice(2, 5))
    zs = student(batch.label_B, batch.token_BL, batch.plan).detach()
    zt = teacher(batch.label_B, batch.token_BL, batch.plan).detach()
    lt = zt.log_softmax(-1)
    batch = batch.scored({"entropy": -(lt.exp() * lt).sum(-1)}, {})
    tau = float(confidence(batch.signal["entropy"], V).quantile(0.3))
    clusters = cluster_codebook(torch.randn(V, 4), RelaxationConfig(factor=4))
    assert clusters is not None
    config = varkd.Config(
        reduction=reduction, student=Divergence(name=kind), gate=GateConfig(tau=tau)
    )
    coefficient_BL = coefficients(
        reduction, config.weigh(batch), batch.context, ("data", "student"), lambda x: x
    )
    token_N = batch.token_BL.flatten()
    flat = TokenChunk(
        "student", token_N, zs.log_softmax(-1).flatten(0, 1), lt.flatten(0, 1), clusters
    )
    ours = (coefficient_BL.flatten() * config(flat)).sum()
    theirs, info = oracle.varkd_loss(
        zs,
        zt,
        batch.prefix_B,
        clusters.cluster_V,
        clusters.size,
        kind,
        tau=tau,
        reduction=reduction,
    )
    assert 0 < float(info["survival"]) < 1
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
