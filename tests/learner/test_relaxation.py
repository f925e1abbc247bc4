"""Codebook relaxation: exact sums, closed-form gradients, and the cluster map itself."""

import math

import pytest
import torch

from common.files.tensors import load_tensors
from learner.balanced_clusters import auction
from learner.categorical import Categorical
from learner.divergence import Divergence, forward_kl, jensen_shannon, reverse_kl
from learner.process_group import SingleProcess
from learner.relaxation import (
    ClusterMap,
    RelaxationConfig,
    chain_rule,
    cluster_codebook,
    cluster_logprob,
    number_by_first_code,
    relaxed,
    run_clusters,
)

V, C, N = 24, 7, 40


@pytest.fixture(params=["unequal", "balanced"])
def clusters(request):
    generator = torch.Generator().manual_seed(0)
    if request.param == "balanced":
        label_V = torch.randperm(V, generator=generator) // 4
    else:
        label_V = torch.cat([torch.arange(C), torch.randint(C, (V - C,), generator=generator)])
    return number_by_first_code(label_V)


@pytest.fixture
def codes_VD():
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def logprobs(seed, *shape, sharp=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(*shape, generator=generator)).log_softmax(-1)


def test_cluster_probabilities_are_sums(clusters):
    fine = logprobs(0, N, V)
    coarse = cluster_logprob(Categorical(fine), clusters)
    for c in range(clusters.size):
        wanted = fine[:, clusters.cluster_V == c].exp().sum(-1)
        torch.testing.assert_close(coarse[:, c].exp(), wanted)


def test_relaxed_gradients_have_their_closed_forms(clusters):
    """docs/method.md, "Relaxation": the three formulas for dL/dz of the relaxed divergences."""
    logit_NV = torch.randn(N, V, generator=torch.Generator().manual_seed(3)).requires_grad_()
    teacher_NV = logprobs(4, N, V)
    q_NV = logit_NV.detach().softmax(-1)
    student_NC = cluster_logprob(Categorical(logit_NV), clusters)
    p_NC, big_q = cluster_logprob(Categorical(teacher_NV), clusters), student_NC.detach()
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
    coarse = [cluster_logprob(Categorical(fine), clusters) for fine in (student, teacher)]
    for divergence in (forward_kl, reverse_kl):
        assert (divergence(*coarse) <= divergence(student, teacher) + 1e-5).all()
        assert (divergence(*coarse) < divergence(student, teacher) - 1e-3).any()


def test_the_chain_rule_splits_the_reverse_kl(clusters):
    """docs/method.md, "Relaxation": KL(q||p) = KL(Q||P) + sum_c Q_c KL(q(.|c) || p(.|c))."""
    student, teacher = logprobs(0, N, V), logprobs(1, N, V)
    wanted = torch.zeros(N)
    for c in range(clusters.size):
        inside = clusters.cluster_V == c
        q, p = student[:, inside], teacher[:, inside]
        mass = q.logsumexp(-1).exp()
        wanted += mass * reverse_kl(q.log_softmax(-1), p.log_softmax(-1))
    laws = Categorical(student), Categorical(teacher)
    between, within = chain_rule(Divergence(name="rkl"), *laws, clusters)
    torch.testing.assert_close(within, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(between + within, reverse_kl(student, teacher))


def test_mix_weighs_clusters_against_codes(clusters):
    student, teacher = Categorical(logprobs(0, N, V)), Categorical(logprobs(1, N, V))
    kl = Divergence(name="rkl")
    fine = kl.between(student, teacher)
    torch.testing.assert_close(fine, kl(student.logprob_NV, teacher.logprob_NV))
    coarse = relaxed(kl, student, teacher, clusters)
    torch.testing.assert_close(
        relaxed(kl, student, teacher, clusters, 0.3), 0.3 * coarse + 0.7 * fine
    )
    assert torch.equal(relaxed(kl, student, teacher, clusters, 0.0), fine)
    assert torch.equal(relaxed(kl, student, teacher, None), fine)


@pytest.mark.parametrize("identity", [ClusterMap(torch.arange(V), V), number_by_first_code])
def test_one_code_per_cluster_changes_no_bit(identity):
    identity = identity if isinstance(identity, ClusterMap) else identity(torch.arange(V))
    student_NV = logprobs(0, N, V).requires_grad_()
    coarse = cluster_logprob(Categorical(student_NV), identity)
    assert torch.equal(coarse, student_NV.log_softmax(-1))
    (grad,) = torch.autograd.grad(reverse_kl(coarse, logprobs(1, N, V)).sum(), student_NV)
    fine = student_NV.log_softmax(-1)
    (plain,) = torch.autograd.grad(reverse_kl(fine, logprobs(1, N, V)).sum(), student_NV)
    assert torch.equal(grad, plain)


@pytest.mark.parametrize("label_V", [[0, 0, 1, 1], [0, 1, 1, 1]])
def test_tiny_cluster_mass_does_not_underflow(label_V):
    logit = torch.zeros(1, 4)
    logit[0, 1:] = -150.0
    clusters = number_by_first_code(torch.tensor(label_V))
    found = float(cluster_logprob(Categorical(logit), clusters)[0, 1])
    assert found == pytest.approx(-150.0 + math.log(sum(label_V)), abs=1e-3)


@pytest.mark.parametrize("metric", ["l2", "cos"])
@pytest.mark.parametrize("balanced", [False, True])
def test_codebook_clusters_cover_the_codebook_and_are_canonical(codes_VD, balanced, metric):
    config = RelaxationConfig(factor=4, balanced=balanced, metric=metric)
    clusters = cluster_codebook(codes_VD, config)
    assert clusters is not None
    assert clusters.size == 16
    sizes = torch.bincount(clusters.cluster_V, minlength=16)
    assert sizes.min() >= 1
    assert (sizes.min() == sizes.max() == 4) == balanced
    shuffled = number_by_first_code((clusters.cluster_V * 7 + 3) % 101)
    assert shuffled.digest == clusters.digest
    scaled = cluster_codebook(codes_VD * torch.linspace(0.1, 9, 64)[:, None], config)
    assert scaled is not None
    assert (scaled.digest == clusters.digest) == (metric == "cos")


def test_factors_that_make_no_clusters_are_refused(codes_VD):
    assert cluster_codebook(codes_VD, RelaxationConfig(factor=1)) is None
    with pytest.raises(ValueError, match=r"relaxation\.factor is 64"):
        cluster_codebook(codes_VD, RelaxationConfig(factor=64))
    with pytest.raises(ValueError, match="factor is 5, which does not divide the 64 codes"):
        cluster_codebook(codes_VD, RelaxationConfig(factor=5, balanced=True))
    assert cluster_codebook(codes_VD, RelaxationConfig(factor=5)) is not None


def test_the_auction_is_as_good_as_the_best_assignment(codes_VD):
    from scipy.optimize import linear_sum_assignment

    centre_CD = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    cost_VC = torch.cdist(codes_VD, centre_CD).square()
    rows, columns = linear_sum_assignment(cost_VC.repeat_interleave(4, dim=1).numpy())
    best = float(cost_VC[rows, columns // 4].sum())
    increment = 1e-3
    label_V = auction(codes_VD, centre_CD, 4, increment)
    found = float(cost_VC.gather(1, label_V[:, None]).sum())
    assert (torch.bincount(label_V) == 4).all()
    assert best - 1e-3 <= found <= best + 64 * increment + 1e-3


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("live", [0, 3, 100, 256])
def test_codes_that_share_a_place_are_balanced_too(live):
    """As a codebook's dead codes: bids of equal codes would hardly ever settle."""
    codes_VD = torch.zeros(256, 4)
    codes_VD[:live] = torch.randn(live, 4, generator=torch.Generator().manual_seed(0))
    clusters = cluster_codebook(codes_VD, RelaxationConfig(factor=4, balanced=True))
    assert clusters is not None
    assert (torch.bincount(clusters.cluster_V) == 4).all()
    member_CM = clusters.cluster_V.argsort(stable=True).view(-1, 4)
    spread = torch.stack([codes_VD[member_M].var(0).sum() for member_M in member_CM])
    assert (spread == 0).sum() >= (256 - live) // 4 - 1


def test_a_run_keeps_its_map(codes_VD, tmp_path):
    path, config = tmp_path / "clusters.safetensors", RelaxationConfig(factor=4, balanced=True)
    made = run_clusters(path, codes_VD, config, SingleProcess())
    assert made is not None
    assert load_tensors(path)[1]["digest"] == made.digest
    written = path.stat().st_mtime_ns
    again = run_clusters(path, codes_VD, config.model_copy(update={"mix": 0.5}), SingleProcess())
    assert again is not None
    assert path.stat().st_mtime_ns == written
    assert again.digest == made.digest
    other = run_clusters(path, codes_VD + 1e-3, config, SingleProcess())
    assert other is not None
    assert path.stat().st_mtime_ns != written
    assert (
        run_clusters(tmp_path / "none", codes_VD, RelaxationConfig(factor=1), SingleProcess())
        is None
    )


def test_ranks_read_what_the_first_one_wrote(codes_VD, tmp_path):
    """The others make no map of their own: theirs could differ."""
    path, config = tmp_path / "clusters.safetensors", RelaxationConfig(factor=4)

    class Second(SingleProcess):
        rank, world = 1, 2

        def barrier(self):
            assert not path.exists()
            run_clusters(path, codes_VD, config, SingleProcess())

    found = run_clusters(path, torch.zeros(64, 4), config, Second())
    wanted = cluster_codebook(codes_VD, config)
    assert found is not None
    assert wanted is not None
    assert found.digest == wanted.digest
