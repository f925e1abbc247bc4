"""Divergences where numbers end, with values that were worked out by hand."""

import math

import pytest
import torch

from common.exchange.entropy import entropy_of
from learner.categorical import Categorical
from learner.divergence import Divergence, truncated
from learner.gate import confidence
from learner.relaxation import cluster_confidence, cluster_logprob, number_by_first_code, relaxed

NAMES = ["fkl", "rkl", "jsd", "tvd", "skl", "srkl", "mix"]


def logs(*probabilities):
    return torch.tensor([probabilities]).log()


@pytest.mark.parametrize("name", NAMES)
def test_a_single_code_leaves_nothing_to_differ_in(name):
    student_NK = torch.zeros(1, 1, requires_grad=True)
    value_N = Divergence(name=name)(student_NK.log_softmax(-1), torch.zeros(1, 1))
    (gradient_NK,) = torch.autograd.grad(value_N.sum(), student_NK)
    assert value_N.item() == pytest.approx(0, abs=1e-7)
    assert gradient_NK.item() == pytest.approx(0, abs=1e-7)


def test_two_codes_are_a_coin():
    """q = (1/4, 3/4), p = (1/2, 1/2); m of jsd is (3/8, 5/8)."""
    student_NK, teacher_NK = logs(0.25, 0.75), logs(0.5, 0.5)
    forward = 0.5 * math.log(4 / 3)
    reverse = 0.75 * math.log(3) - math.log(2)
    towards_teacher = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    towards_student = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    wanted = {
        "fkl": forward,
        "rkl": reverse,
        "tvd": 0.25,
        "jsd": 0.5 * (towards_teacher + towards_student),
        "mix": 0.5 * (forward + reverse),
    }
    for name, value in wanted.items():
        found_N = Divergence(name=name)(student_NK, teacher_NK)
        assert found_N.item() == pytest.approx(value, abs=1e-6), name


def test_total_variation_knows_codes_of_no_probability():
    found_N = Divergence(name="tvd")(logs(0.25, 0.75, 0.0), logs(0.5, 0.0, 0.5))
    assert found_N.item() == pytest.approx(0.75)


BOTH_LACK_THE_THIRD = {
    # q = (1/4, 3/4, 0), p = (1/2, 1/2, 0): as the coin, for 0 log 0 = 0
    "fkl": 0.5 * math.log(4 / 3),
    "rkl": 0.75 * math.log(3) - math.log(2),
    "tvd": 0.25,
    "jsd": 0.25 * math.log(16 / 15) + 0.125 * math.log(2 / 3) + 0.375 * math.log(6 / 5),
    "mix": 0.25 * math.log(4 / 3) + 0.375 * math.log(3) - 0.5 * math.log(2),
    # a = 1/10: KL(p || (11/40, 29/40)) and KL(q || (19/40, 21/40))
    "skl": 0.5 * math.log(20 / 11) + 0.5 * math.log(20 / 29),
    "srkl": 0.25 * math.log(10 / 19) + 0.75 * math.log(10 / 7),
}
SLOPES = {
    # dD/dz_1 = q_1 (f_1 - sum_j q_j f_j) with f = dD/dq of the coin; dD/dz_2 = -dD/dz_1
    "fkl": -0.25,  # q - p
    "rkl": -0.1875 * math.log(3),  # q_1 q_2 (log q_1/p_1 - log q_2/p_2)
    "jsd": 0.09375 * math.log(5 / 9),  # (1 - b) q_1 q_2 (log q_1/m_1 - log q_2/m_2)
}


@pytest.mark.parametrize("name", NAMES)
def test_a_code_that_both_models_lack_counts_nothing(name):
    logit_NK = logs(0.25, 0.75, 0.0).requires_grad_()
    value_N = Divergence(name=name)(logit_NK.log_softmax(-1), logs(0.5, 0.5, 0.0))
    assert value_N.item() == pytest.approx(BOTH_LACK_THE_THIRD[name], abs=1e-6)
    (gradient_NK,) = torch.autograd.grad(value_N.sum(), logit_NK)
    assert torch.isfinite(gradient_NK).all()
    assert gradient_NK[0, 2] == 0
    assert gradient_NK.sum().item() == pytest.approx(0, abs=1e-6)
    if name in SLOPES:
        assert gradient_NK[0, 0].item() == pytest.approx(SLOPES[name], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_code_that_one_model_lacks_costs_what_the_formula_says(name):
    """q = (1/2, 1/2, 0), p = (1/2, 0, 1/2): only what divides by a missing code is infinite."""
    wanted = {
        "fkl": math.inf,
        "rkl": math.inf,
        "mix": math.inf,
        "tvd": 0.5,
        "jsd": 0.5 * math.log(2),
        # KL(p || (1/2, 9/20, 1/20)) and KL(q || (1/2, 1/20, 9/20))
        "skl": 0.5 * math.log(10),
        "srkl": 0.5 * math.log(10),
    }
    found_N = Divergence(name=name)(logs(0.5, 0.5, 0.0), logs(0.5, 0.0, 0.5))
    assert found_N.item() == pytest.approx(wanted[name], abs=1e-6)


def test_a_probability_too_small_for_its_type_is_none():
    """exp(-200) is 0 in float32, so a teacher without that code is no worse for it."""
    student_NK = torch.tensor([[0.0, -200.0]]).requires_grad_()
    teacher_NK = torch.tensor([[0.0, -torch.inf]])
    for name in ("rkl", "srkl", "jsd"):
        value_N = Divergence(name=name)(student_NK, teacher_NK)
        assert value_N.item() == pytest.approx(0, abs=1e-6), name
        (gradient_NK,) = torch.autograd.grad(value_N.sum(), student_NK)
        assert torch.isfinite(gradient_NK).all(), name


@pytest.mark.parametrize("name", ["fkl", "rkl", "jsd", "tvd", "skl", "srkl", "mix"])
def test_all_kept_codes_leave_a_tail_of_nothing(name):
    """Of four codes two have no probability, and the other two are kept: the tail is empty."""
    logit_NK = logs(0.25, 0.75, 0.0, 0.0).requires_grad_()
    divergence = Divergence(name=name, top_k=2)
    value_N = divergence(logit_NK.log_softmax(-1), logs(0.5, 0.5, 0.0, 0.0))
    assert value_N.item() == pytest.approx(BOTH_LACK_THE_THIRD[name], abs=1e-6)
    (gradient_NK,) = torch.autograd.grad(value_N.sum(), logit_NK)
    assert torch.isfinite(gradient_NK).all()


@pytest.mark.parametrize("cluster_V", [[0, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2]])
def test_a_cluster_that_both_models_lack_counts_nothing(cluster_V):
    """Clusters of (1/4, 3/4, 0) and (1/2, 1/2, 0), of unequal sizes and of equal ones."""
    split = 2 if len(cluster_V) == 6 else 1
    coarse = [[q / split] * split for q in (0.25, 0.75)], [[p / split] * split for p in (0.5, 0.5)]
    empty = [0.0] * (len(cluster_V) - 2 * split)
    student, teacher = ([*first, *second, *empty] for first, second in coarse)
    clusters = number_by_first_code(torch.tensor(cluster_V))
    logit_NV = logs(*student).requires_grad_()
    value_N = relaxed(
        Divergence(name="fkl"), Categorical(logit_NV), Categorical(logs(*teacher)), clusters
    )
    assert value_N.item() == pytest.approx(BOTH_LACK_THE_THIRD["fkl"], abs=1e-6)
    (gradient_NV,) = torch.autograd.grad(value_N.sum(), logit_NV)
    wanted = [-0.25 / split] * split + [0.25 / split] * split + empty
    assert gradient_NV[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_entropy_of_codes_of_no_probability_is_that_of_the_others():
    logprob_NV = logs(0.25, 0.75, 0.0).requires_grad_()
    entropy_N = entropy_of(logprob_NV)
    wanted = 2 * math.log(2) - 0.75 * math.log(3)
    assert entropy_N.item() == pytest.approx(wanted, abs=1e-6)
    (gradient_NV,) = torch.autograd.grad(entropy_N.sum(), logprob_NV)
    # -(p log p)' by log p is -p (log p + 1)
    slopes = [0.25 * (2 * math.log(2) - 1), -0.75 * (math.log(0.75) + 1), 0]
    assert gradient_NV[0].tolist() == pytest.approx(slopes, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_and_the_largest_logits_give_numbers(name):
    """A student that is sure of the wrong code, by 60 nats: finite, with a finite gradient."""
    logit_NK = torch.tensor([[60.0, 0.0]]).requires_grad_()
    value_N = Divergence(name=name)(logit_NK.log_softmax(-1), logs(1e-20, 1.0))
    (gradient_NK,) = torch.autograd.grad(value_N.sum(), logit_NK)
    assert torch.isfinite(value_N).all()
    assert torch.isfinite(gradient_NK).all()
    wanted = {"fkl": 60.0, "rkl": 20 * math.log(10), "tvd": 1.0, "jsd": math.log(2)}
    if name in wanted:
        assert value_N.item() == pytest.approx(wanted[name], rel=1e-5)


def test_ties_at_the_last_kept_code_leave_a_distribution():
    """Teacher (0.4, 0.4, 0.2), one code kept: whichever it is, the rest is one category."""
    student_NK, teacher_NK = logs(0.25, 0.75, 1e-30), logs(0.4, 0.4, 0.2)
    coarse_student, coarse_teacher = truncated(student_NK, teacher_NK, 1, tail=True)
    assert coarse_teacher.exp()[0].tolist() == pytest.approx([0.4, 0.6])
    assert sorted(coarse_student.exp()[0].tolist()) == pytest.approx([0.25, 0.75])


def test_clusters_of_all_codes_and_of_one():
    three = Categorical(logs(0.5, 0.25, 0.25))
    whole = number_by_first_code(torch.tensor([7, 7, 7]))
    torch.testing.assert_close(cluster_logprob(three, whole), torch.zeros(1, 1))
    pair = number_by_first_code(torch.tensor([1, 0, 1]))
    found = cluster_logprob(three, pair).exp()
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25]]))


def test_confidence_of_a_coin():
    """H(1/2, 1/2) = log 2: none; H(0, 1) = 0: all; H(1/4, 3/4) = 2 log 2 - 3/4 log 3."""
    entropy_BL = torch.tensor([[math.log(2), 0.0, 2 * math.log(2) - 0.75 * math.log(3)]])
    wanted = [0.0, 1.0, 0.75 * math.log2(3) - 1]
    assert confidence(entropy_BL, 2)[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_single_code_is_certain():
    """H = 0 of log 1 = 0: the limit of a teacher that is sure, and nothing to doubt."""
    assert confidence(torch.zeros(2, 3), 1).tolist() == [[1.0] * 3] * 2
    whole = number_by_first_code(torch.tensor([7, 7, 7]))
    sure_N = cluster_confidence(whole)(logs(0.5, 0.25, 0.25), torch.tensor([0]))
    assert sure_N.tolist() == [1.0]
