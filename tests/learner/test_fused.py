"""Losses by kernels of our own against the plain formulas in float64."""

import math

import pytest
import torch
from building.gpus import needs_gpu

from learner import analytic, fused, native_losses
from learner.categorical import Categorical
from learner.divergence import Divergence
from learner.relaxation import coarse, number_by_first_code, relaxed

needs_compiler = pytest.mark.skipif(native_losses.library() is None, reason="no C compiler")


@pytest.fixture(
    params=[pytest.param("cpu", marks=needs_compiler), pytest.param("cuda", marks=needs_gpu)],
    autouse=True,
)
def device(request):
    """Whatever is made in a test is there."""
    with torch.device(request.param) as found:
        yield found


N, V, C = 7, 5003, 700
"""Codes in more than one block, the last one not full."""
DIVERGENCES = [
    Divergence(name="fkl"),
    Divergence(name="rkl"),
    Divergence(name="jsd", beta=0.3),
    Divergence(name="jsd", beta=0.0),
    Divergence(name="jsd", beta=1.0),
    Divergence(name="tvd"),
    Divergence(name="skl", alpha=0.2),
    Divergence(name="srkl", alpha=0.2),
    Divergence(name="mix", rkl_share=0.25),
]


HERE = torch.get_default_device


def logits(seed: int, dtype=torch.float32):
    generator = torch.Generator("cpu").manual_seed(seed)
    return (3 * torch.randn(N, V, generator=generator, device="cpu")).to(dtype).to(HERE())


def clusters():
    generator = torch.Generator("cpu").manual_seed(5)
    label_V = torch.randint(C, (V,), generator=generator, device="cpu")
    label_V[:C] = torch.arange(C)
    return number_by_first_code(label_V).to(HERE())


def of_formula(divergence, logit_NV, teacher_NV, map_of_codes):
    pair = [value.double().log_softmax(-1) for value in (logit_NV, teacher_NV)]
    if map_of_codes is not None:
        member_VC = torch.nn.functional.one_hot(map_of_codes.cluster_V, C).double()
        pair = [(value.exp() @ member_VC).log() for value in pair]
    return divergence.value(*pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("by", ["codes", "clusters"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: f"{d.name}-{d.beta}")
def test_values_and_gradients_are_those_of_the_formula(divergence, by, dtype):
    map_of_codes = clusters() if by == "clusters" else None
    student_NV, teacher_NV = logits(1, dtype).requires_grad_(), logits(2)
    assert all(fused.reads(Categorical(value)) for value in (student_NV, teacher_NV))
    weight_N = torch.linspace(0.1, 2, N)
    loss_N = relaxed(divergence, Categorical(student_NV), Categorical(teacher_NV), map_of_codes)
    (found,) = torch.autograd.grad((weight_N * loss_N).sum(), student_NV)
    exact_NV = student_NV.detach().double().requires_grad_()
    wanted_N = of_formula(divergence, exact_NV, teacher_NV, map_of_codes)
    (wanted,) = torch.autograd.grad((weight_N * wanted_N).sum(), exact_NV)
    torch.testing.assert_close(loss_N.double(), wanted_N, rtol=2e-5, atol=1e-6)
    assert found.dtype == dtype
    rounding = 4e-3 if dtype == torch.bfloat16 else 2e-5
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: f"{d.name}-{d.beta}")
def test_codes_that_neither_has_count_nothing(divergence):
    missing = torch.full((N, 5000), -torch.inf)
    few = logits(1)[:, :40].contiguous(), logits(2)[:, :40].contiguous()
    padded = [torch.cat([missing, value], -1) for value in few]
    padded[0].requires_grad_()
    wanted_N = divergence(*(value.log_softmax(-1) for value in few))
    found_N = divergence.between(*map(Categorical, padded))
    torch.testing.assert_close(found_N, wanted_N, rtol=2e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found_N.sum(), padded[0])
    assert gradient.isfinite().all()
    assert not gradient[:, :5000].any()


def test_clusters_too_small_to_add_up_are_summed_by_maxima():
    logit_NV = torch.zeros(1, V)
    logit_NV[0, 1:] = -200.0
    map_of_codes = number_by_first_code(torch.arange(V, device="cpu") // 2).to(HERE())
    assert fused.cluster_logits(logit_NV, *_parts(map_of_codes), analytic.LEAST) is None
    found = coarse(Categorical(logit_NV), map_of_codes).logprob_NV
    torch.testing.assert_close(found[0, 1], torch.tensor(2.0).log() - 200)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: f"{d.name}-{d.beta}")
def test_what_is_not_finite_gives_no_finite_loss(divergence, side, wrong):
    pair = {"student": logits(1), "teacher": logits(2)}
    pair[side][3, 4000] = wrong
    loss_N = divergence.between(*map(Categorical, pair.values()))
    assert loss_N.isfinite().tolist() == [True, True, True, False, True, True, True]


def test_large_clusters_are_added_up_exactly():
    """Thousands of small numbers below one large one."""
    logit_NV = torch.zeros(1, 2**18)
    logit_NV[0, 0] = 8.0
    map_of_codes = number_by_first_code((torch.arange(2**18, device="cpu") > 0).long()).to(HERE())
    found_NC = coarse(Categorical(logit_NV), map_of_codes).logprob_NV
    mass = torch.tensor([8.0, math.log(2**18 - 1)], dtype=torch.float64)
    torch.testing.assert_close(found_NC[0].double(), mass.log_softmax(0), rtol=0, atol=1e-5)


def test_logits_that_do_not_belong_together_are_refused():
    pair = Categorical(logits(1)), Categorical(logits(2)[:, 1:].contiguous())
    with pytest.raises(ValueError, match=r"shapes \[7, 5003\] and \[7, 5002\]"):
        Divergence(name="rkl").between(*pair)
    with pytest.raises(ValueError, match="clusters of 5003 codes, logits of 5002"):
        coarse(pair[1], clusters())


@pytest.mark.parametrize("by", ["codes", "clusters"])
def test_log_probabilities_from_a_record_are_not_normalised_once_more(by):
    """Rounded to float16 they don't add up to 1; a CPU takes them as they are, too."""
    map_of_codes = clusters() if by == "clusters" else None
    teacher_NV = logits(2).log_softmax(-1) - 0.01
    teacher = Categorical.normalised(teacher_NV)
    assert not fused.reads(teacher)
    found_N = relaxed(Divergence(name="fkl"), Categorical(logits(1)), teacher, map_of_codes)
    here = None if map_of_codes is None else map_of_codes.to(torch.device("cpu"))
    pair = Categorical(logits(1).cpu()), Categorical.normalised(teacher_NV.cpu())
    torch.testing.assert_close(found_N.cpu(), relaxed(Divergence(name="fkl"), *pair, here))


def _parts(map_of_codes):
    return map_of_codes.cluster_V, map_of_codes.size
