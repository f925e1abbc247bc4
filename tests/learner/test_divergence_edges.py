"""Divergences where numbers end, with values that were worked out by hand."""

import math

import pytest
import torch

from learner.divergence import Divergence, truncated
from learner.gate import confidence
from learner.relaxation import cluster_logprob, number_by_first_code

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
    """The others take logarithms of both: a model whose logits are finite has none."""
    found_N = Divergence(name="tvd")(logs(0.25, 0.75, 0.0), logs(0.5, 0.0, 0.5))
    assert found_N.item() == pytest.approx(0.75)


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
    logprob_NV = logs(0.5, 0.25, 0.25)
    whole = number_by_first_code(torch.tensor([7, 7, 7]))
    torch.testing.assert_close(cluster_logprob(logprob_NV, whole), torch.zeros(1, 1))
    pair = number_by_first_code(torch.tensor([1, 0, 1]))
    found = cluster_logprob(logprob_NV, pair).exp()
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25]]))


def test_confidence_of_a_coin():
    """H(1/2, 1/2) = log 2: none; H(0, 1) = 0: all; H(1/4, 3/4) = 2 log 2 - 3/4 log 3."""
    entropy_BL = torch.tensor([[math.log(2), 0.0, 2 * math.log(2) - 0.75 * math.log(3)]])
    wanted = [0.0, 1.0, 0.75 * math.log2(3) - 1]
    assert confidence(entropy_BL, 2)[0].tolist() == pytest.approx(wanted, abs=1e-6)
