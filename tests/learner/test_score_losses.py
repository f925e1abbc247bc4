"""Scores of the teacher and the losses of Distilled Decoding 2: the acceptance tests D1, D2 and D3
of docs/one_step.md, "Losses"."""

from functools import partial

import pytest
import torch
from building.students import velocity_model
from pydantic import ValidationError

from common.flow.laws import FlowCodes
from common.models.filters import FilterConfig, filtered_logprob
from common.models.generator import gaussian
from common.spec import SequenceSpec
from learner.score_losses.denoisers import of_network, of_teacher, velocity_of
from learner.score_losses.losses import (
    PositionWeights,
    ScoreDistance,
    fake_score_loss,
    ground_truth_score_loss,
)
from learner.score_losses.points import Points, TimeLaw, draw_points

LABEL_B = torch.tensor([0, 2, 1])
B, L, D, V, M = 3, 6, 5, 24, 2


@pytest.fixture
def codes():
    return FlowCodes(torch.randn(V, D, generator=torch.Generator().manual_seed(0)).double())


@pytest.fixture
def law(codes):
    logit_NV = torch.randn(B * L, V, generator=torch.Generator().manual_seed(1)).double()
    return codes.law((1.5 * logit_NV).log_softmax(-1))


@pytest.fixture
def points():
    drawn = draw_points([4, 5, 6], L, D, draws=M, times=TimeLaw(lowest=0.2, highest=0.9))
    return Points(drawn.time_MBL.double(), drawn.noise_MBLD.double())


@pytest.fixture
def vector_BLD():
    return gaussian([1, 2, 3], L, D).double()


def other_law(codes, seed=2):
    logit_NV = torch.randn(B * L, V, generator=torch.Generator().manual_seed(seed)).double()
    return codes.law(logit_NV.log_softmax(-1))


def test_the_teachers_score_is_the_gradient_of_the_density_of_noisy_codes(codes, law, points):
    """log sum_j p_j N(x; (1 - t) c_j, t^2 I), every slot by its own law and at its own time."""
    time_MBL1 = points.time_MBL[..., None]
    x_MBLD = points.noise_MBLD.clone().requires_grad_()
    away = x_MBLD[..., None, :] - (1 - time_MBL1[..., None]) * codes.code_VD
    kernel_MBLV = -away.square().sum(-1) / (2 * time_MBL1**2)
    density = (law.logprob_NK.view(B, L, V) + kernel_MBLV).logsumexp(-1)
    (wanted,) = torch.autograd.grad(density.sum(), x_MBLD)
    d_MBLD = of_teacher(law)(x_MBLD.detach(), points.time_MBL)
    score = ((1 - time_MBL1) * d_MBLD - x_MBLD) / time_MBL1**2
    torch.testing.assert_close(score, wanted, rtol=1e-9, atol=1e-9)
    velocity = velocity_of(d_MBLD, x_MBLD, points.time_MBL)
    torch.testing.assert_close(velocity, -(time_MBL1 * score + x_MBLD) / (1 - time_MBL1))
    torch.testing.assert_close(x_MBLD - time_MBL1 * velocity, d_MBLD)


def test_noise_has_the_score_of_noise_and_what_is_clean_is_its_nearest_code(codes, law, points):
    teacher, x_MBLD = of_teacher(law), points.noise_MBLD
    one = torch.ones_like(points.time_MBL)
    mean_ND = law.logprob_NK.exp() @ codes.code_VD
    expected = mean_ND.view(B, L, D).expand_as(x_MBLD)
    torch.testing.assert_close(teacher(x_MBLD, one), expected)  # so the score is -x
    near_MBLD = codes.code_VD[torch.cdist(x_MBLD, codes.code_VD).argmin(-1)]
    torch.testing.assert_close(teacher(x_MBLD, 1e-4 * one), near_MBLD)


def test_codes_that_a_filter_removed_have_no_part_and_slots_may_be_taken_in_parts(codes, points):
    logit_NV = torch.randn(B * L, V, generator=torch.Generator().manual_seed(1)).double()
    logprob_NV = filtered_logprob(logit_NV, FilterConfig(top_k=4))
    gathered = codes.law(logprob_NV)
    assert gathered.logprob_NK.shape == (B * L, 4)
    found, gradients = [], []
    for denoiser in (of_teacher(gathered), of_teacher(gathered, numbers=4 * D * 4)):
        x_MBLD = points.noise_MBLD.clone().requires_grad_()
        d_MBLD = denoiser(x_MBLD, points.time_MBL)
        found.append(d_MBLD.detach())
        gradients.append(torch.autograd.grad((d_MBLD * points.noise_MBLD).sum(), x_MBLD)[0])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    time_MBL11 = points.time_MBL[..., None, None]
    away = points.noise_MBLD[..., None, :] - (1 - time_MBL11) * codes.code_VD
    logit = logprob_NV.view(B, L, V) - away.square().sum(-1) / (2 * points.time_MBL[..., None] ** 2)
    torch.testing.assert_close(found[0], logit.softmax(-1) @ codes.code_VD)


def z_scores(rest_ND, x_ND, time_N1, functions=20):
    """Of E[rest . g(x, t)] = 0, for random fixed g."""
    generator = torch.Generator().manual_seed(11)
    found = []
    for _ in range(functions):
        a_D, w_D = torch.randn(2, rest_ND.shape[1], generator=generator).double()
        b, c = (3 * torch.randn(2, generator=generator)).double()
        value_N = (rest_ND @ w_D) * torch.sin(x_ND @ a_D + b * time_N1[:, 0] + c)
        found.append(float(value_N.mean() / (value_N.std() / len(value_N) ** 0.5)))
    return torch.tensor(found).abs()


def test_the_target_of_gts_is_what_minimises_the_loss_of_fcs():
    """What (noise - code) is beyond the teacher's velocity has no part that x and t explain, so
    the mean of one loss has its minimum at the other's target. The sign turned round, or a time
    that is a little off, shows."""
    generator = torch.Generator().manual_seed(5)
    codes = FlowCodes(torch.randn(8, 2, generator=generator).double())
    law = codes.law((1.5 * torch.randn(1, 8, generator=generator)).double().log_softmax(-1))
    count = 200_000
    token_N = law.logprob_NK[0].exp().multinomial(count, replacement=True, generator=generator)
    points = draw_points([9], count, 2, draws=1, times=TimeLaw(lowest=0.05, highest=0.95))
    time_11N, code_1ND = points.time_MBL.double(), codes.code_VD[token_N][None]
    x_11ND = Points(time_11N, points.noise_MBLD.double()).between(code_1ND)
    aim_ND = (points.noise_MBLD.double() - code_1ND)[0, 0]

    def rest(time_11N, sign=1):
        velocity = velocity_of(of_teacher(law)(x_11ND, time_11N), x_11ND, time_11N)
        return aim_ND - sign * velocity[0, 0]

    scores = partial(z_scores, x_ND=x_11ND[0, 0], time_N1=time_11N[0, 0][:, None])
    assert scores(rest(time_11N)).max() < 4
    assert scores(rest(time_11N, sign=-1)).max() > 20
    assert scores(rest(0.93 * time_11N)).max() > 5


def test_both_losses_of_velocities_are_mean_squares_to_their_targets(tiny, codes, law, points):
    model = velocity_model("dd2_llamagen", tiny("llamagen"))
    vector_BLD = gaussian([1, 2, 3], L, D).requires_grad_()
    points = Points(points.time_MBL.float(), points.noise_MBLD.float())
    feature_BLC = model.features(LABEL_B, vector_BLD.detach())
    teacher = of_teacher(FlowCodes(codes.code_VD.float()).law(law.logprob_NK.float()))
    gts_BL = ground_truth_score_loss(model, feature_BLC, vector_BLD, teacher, points)
    fcs_BL = fake_score_loss(model, feature_BLC, vector_BLD, points)
    x_MBLD = points.between(vector_BLD.detach())
    d_MBLD = of_network(model, feature_BLC)(x_MBLD, points.time_MBL)
    back_MBLD = velocity_of(d_MBLD, x_MBLD, points.time_MBL)
    said_MBLD = model.velocity(x_MBLD, points.time_MBL, feature_BLC)
    torch.testing.assert_close(back_MBLD, said_MBLD, atol=1e-4, rtol=1e-4)
    wanted = torch.zeros(2, B, L)
    for time_BL, noise_BLD in zip(points.time_MBL, points.noise_MBLD, strict=True):
        x_BLD = vector_BLD + time_BL[..., None] * (noise_BLD - vector_BLD)
        said_BLD = model.velocity(x_BLD, time_BL, feature_BLC)
        d_BLD = teacher(x_BLD[None], time_BL[None])[0]
        wanted[0] += (said_BLD - (x_BLD - d_BLD) / time_BL[..., None]).square().sum(-1) / M
        wanted[1] += (said_BLD - noise_BLD + vector_BLD).square().sum(-1) / M
    torch.testing.assert_close(torch.stack([gts_BL, fcs_BL]), wanted)
    (gts_BL + fcs_BL).sum().backward()
    assert vector_BLD.grad is None, "the vectors are data"
    assert model.velocity_head.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("rule", ["sid", "dmd"])
def test_the_generators_loss_is_zero_with_its_gradient_where_scores_agree(
    rule, law, points, vector_BLD
):
    leaf_BLD = vector_BLD.requires_grad_()
    teacher = of_teacher(law)
    loss_BL = ScoreDistance(rule=rule).loss(leaf_BLD, teacher, teacher, points)
    (gradient_BLD,) = torch.autograd.grad(loss_BL.sum(), leaf_BLD)
    assert not loss_BL.any()
    assert not gradient_BLD.any()


@pytest.mark.parametrize("omega", ["sequence", "slot", "none"])
def test_the_distances_are_those_of_the_released_code(omega, codes, law, points, vector_BLD):
    teacher, guidance = of_teacher(law), of_teacher(other_law(codes))
    x_MBLD = points.between(vector_BLD)
    t_MBLD, g_MBLD = (d(x_MBLD, points.time_MBL) for d in (teacher, guidance))
    scale = torch.ones(M, B, L)
    for m, b, i in torch.cartesian_prod(torch.arange(M), torch.arange(B), torch.arange(L)):
        slots = slice(None) if omega == "sequence" else i
        if omega != "none":
            scale[m, b, i] = (vector_BLD[b, slots] - t_MBLD[m, b, slots]).abs().mean()
    for alpha in (1.0, 0.8):
        found_BL = ScoreDistance(alpha=alpha, omega=omega).loss(
            vector_BLD, teacher, guidance, points
        )
        rest_MBLD = t_MBLD - vector_BLD - alpha * (t_MBLD - g_MBLD)
        wanted_MBL = ((t_MBLD - g_MBLD) * rest_MBLD).sum(-1) / scale
        torch.testing.assert_close(found_BL, wanted_MBL.mean(0), rtol=1e-6, atol=1e-6)
        if alpha == 1:
            short_MBL = ((t_MBLD - g_MBLD) * (g_MBLD - vector_BLD)).sum(-1) / scale
            torch.testing.assert_close(found_BL, short_MBL.mean(0), rtol=1e-6, atol=1e-6)
    leaf_BLD = vector_BLD.clone().requires_grad_()
    dmd_BL = ScoreDistance(rule="dmd", omega=omega).loss(leaf_BLD, teacher, guidance, points)
    (gradient_BLD,) = torch.autograd.grad(dmd_BL.sum(), leaf_BLD)
    wanted_BLD = ((g_MBLD - t_MBLD) / scale[..., None]).mean(0)
    torch.testing.assert_close(gradient_BLD, wanted_BLD, rtol=1e-6, atol=1e-6)


def test_the_generators_gradient_is_that_of_the_loss_also_through_the_noisy_vectors(
    codes, law, points, vector_BLD
):
    """Central differences; without the way through x it is another one."""
    teacher, guidance = of_teacher(law), of_teacher(other_law(codes))
    distance = ScoreDistance(omega="none")

    def loss(vector_BLD):
        return distance.loss(vector_BLD, teacher, guidance, points).sum()

    leaf_BLD = vector_BLD.requires_grad_()
    (gradient_BLD,) = torch.autograd.grad(loss(leaf_BLD), leaf_BLD)
    for place in ((0, 0, 0), (1, 3, 2), (2, 5, 4)):
        step_BLD = torch.zeros_like(vector_BLD)
        step_BLD[place] = 1e-5
        with torch.no_grad():
            slope = (loss(vector_BLD + step_BLD) - loss(vector_BLD - step_BLD)) / 2e-5
        assert float(gradient_BLD[place]) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)
    x_MBLD = points.between(vector_BLD.detach())
    t_MBLD, g_MBLD = (d(x_MBLD, points.time_MBL) for d in (teacher, guidance))
    shorter_BLD = -(t_MBLD - g_MBLD).mean(0)
    assert ((gradient_BLD - shorter_BLD).norm() / gradient_BLD.norm()) > 0.1


def test_draws_are_a_function_of_their_rows_seed():
    times = TimeLaw()
    points = draw_points(range(400), 4, 3, draws=2, times=times)
    part = draw_points([7, 399], 4, 3, draws=2, times=times)
    assert torch.equal(part.noise_MBLD, points.noise_MBLD[:, [7, 399]])
    assert torch.equal(part.time_MBL, points.time_MBL[:, [7, 399]])
    count = points.noise_MBLD.numel()
    assert abs(float(points.noise_MBLD.mean())) < 5 / count**0.5
    assert abs(float(points.noise_MBLD.var()) - 1) < 5 * (2 / count) ** 0.5
    assert 0.01 <= float(points.time_MBL.min()) < 0.02
    assert 0.98 < float(points.time_MBL.max()) <= 0.99
    assert not torch.equal(points.noise_MBLD[0], points.noise_MBLD[1])


def test_times_follow_their_law():
    uniform = torch.linspace(0, 0.999, 1000).double()
    torch.testing.assert_close(TimeLaw(lowest=0.2, highest=0.6).times(uniform), 0.2 + 0.4 * uniform)
    times = TimeLaw(law="logit_normal", lowest=0.1, highest=0.9, mean=0.5, std=2.0).times(uniform)
    logit = torch.logit((times[1:] - 0.1) / 0.8)
    normal = torch.distributions.Normal(0.5, 2.0)
    torch.testing.assert_close(normal.cdf(logit), uniform[1:], atol=1e-9, rtol=1e-9)
    assert times[0] == 0.1
    with pytest.raises(ValidationError, match=r"lowest is 0.5, above highest, which is 0.4"):
        TimeLaw(lowest=0.5, highest=0.4)


def test_weights_go_in_a_straight_line_over_steps_and_are_1_on_average():
    raster = SequenceSpec(V, 5, (1, 5), 3)
    found = PositionWeights(first=3.0).weights(raster)
    assert found.tolist() == [1.5, 1.25, 1.0, 0.75, 0.5]
    scales = SequenceSpec(V, 14, (3, 3), 3, (1, 2, 3))
    found = PositionWeights(first=3.0).weights(scales)
    assert found.tolist() == pytest.approx([x * 14 / 20 for x in [3] + 4 * [2] + 9 * [1]])
    assert PositionWeights().weights(scales).tolist() == [1.0] * 14
