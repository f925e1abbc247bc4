"""Written-out gradients against autograd through the plain formulas, in double precision."""

import pytest
import torch
from torch import Tensor, nn

from common.exchange.signals import full
from learner.analytic import summed_logprob
from learner.categorical import Categorical
from learner.divergence import Divergence
from learner.relaxation import number_by_first_code, relaxed
from learner.teacher_targets import TeacherTargets

N, V, C = 5, 24, 7

DIVERGENCES = [
    Divergence.model_validate(given)
    for given in (
        {"name": "fkl"},
        {"name": "rkl"},
        {"name": "jsd", "beta": 0.0},
        {"name": "jsd", "beta": 0.3},
        {"name": "jsd", "beta": 1.0},
        {"name": "tvd"},
        {"name": "skl", "alpha": 0.1},
        {"name": "srkl", "alpha": 0.3},
        {"name": "mix", "rkl_share": 0.25},
        {"name": "rkl", "top_k": 5},
        {"name": "tvd", "top_k": 5, "tail": False},
    )
]


def logits(seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(N, V, dtype=torch.double, generator=generator)


def cluster_of_codes() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.cat([torch.arange(C), torch.randint(C, (V - C,), generator=generator)])


def oracle(divergence: Divergence, logit_NV: Tensor, teacher_NV: Tensor, coarse: bool) -> Tensor:
    """The plain formula, with clusters summed by a matrix of zeros and ones."""
    pair = logit_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    if coarse:
        member_VC = nn.functional.one_hot(cluster_of_codes(), C).double()
        pair = tuple((value.exp() @ member_VC).log() for value in pair)
    if divergence.top_k:
        best = pair[1].topk(divergence.top_k, dim=-1).indices
        kept = [value.gather(-1, best) for value in pair]
        if divergence.tail:
            kept = [torch.cat([k, (1 - k.exp().sum(-1, keepdim=True)).log()], -1) for k in kept]
        pair = tuple(kept)
    return divergence.value(*pair)


@pytest.mark.parametrize("coarse", [False, True], ids=["codes", "clusters"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: f"{d.name}-{d.beta}-{d.top_k}")
def test_values_and_gradients_are_those_of_autograd(divergence, coarse):
    teacher_NV, weight_N = logits(1), torch.rand(N, dtype=torch.double)
    found, wanted = logits(2).requires_grad_(), logits(2).requires_grad_()
    clusters = number_by_first_code(cluster_of_codes()) if coarse else None
    loss_N = relaxed(divergence, Categorical(found), Categorical(teacher_NV), clusters)
    wanted_N = oracle(divergence, wanted, teacher_NV, coarse)
    torch.testing.assert_close(loss_N, wanted_N)
    (weight_N * loss_N).sum().backward()
    (weight_N * wanted_N).sum().backward()
    assert found.grad is not None
    assert found.grad.abs().max() > 1e-3
    torch.testing.assert_close(found.grad, wanted.grad)


def test_sums_of_tiny_probabilities_keep_their_logarithm_and_gradient():
    """Codes at e^-200 have no float32 probability, yet a cluster of them has one logarithm."""
    logit_NV = torch.tensor([[-200.0, -201.0, -1e-6, -150.0]]).requires_grad_()
    found = summed_logprob(logit_NV, torch.tensor([0, 0, 1, 2]), 3)
    first = -200 + torch.tensor(-1.0).exp().log1p()
    torch.testing.assert_close(found[0], torch.tensor([float(first), 0.0, -150.0]))
    found[0, 0].backward()
    share = 1 / (1 + torch.tensor(-1.0).exp())
    assert logit_NV.grad is not None
    wanted = torch.stack([share, 1 - share, torch.tensor(-1.0), torch.tensor(0.0)])
    torch.testing.assert_close(logit_NV.grad[0], wanted)


def test_what_was_asked_for_without_a_gradient_still_has_one():
    given = Categorical(logits(3).requires_grad_())
    with torch.no_grad():
        assert not given.logprob_NV.requires_grad
    (found,) = torch.autograd.grad(given.logprob_NV[:, 0].sum(), given.logit_NV)
    wanted = torch.eye(V, dtype=torch.double)[0] - given.logit_NV.detach().softmax(-1)
    torch.testing.assert_close(found, wanted)
    assert given.logprob_NV is given.logprob_NV


def test_log_probabilities_from_a_record_stay_as_they_are():
    """Rounded to float16 they don't add up to 1 exactly; nobody pays for another softmax."""
    logprob_NV = logits(4).log_softmax(-1).half().float()
    targets = TeacherTargets(full.Config(), nn.Linear(1, V), "head")
    found = targets.distribution({"logprob": logprob_NV})
    assert torch.equal(found.logprob_NV, logprob_NV)
    assert torch.equal(found.only(torch.tensor([3, 1])).logprob_NV, logprob_NV[[3, 1]])
