"""The flow from noise to codes: identities, directions, and the law of what it reaches.

The acceptance tests F1, F2, F5 and F6 of docs/one_step.md; F3 and F4 are in
tests/golden/test_flow.py.
"""

import pytest
import torch

from common.config.plugins import kinds, load_plugin
from common.flow.field import (
    at_data_time,
    at_noise_time,
    denoised,
    denoised_of_velocity,
    noisy,
    predicted_noise,
    score,
    score_of_velocity,
    velocity,
    velocity_of_score,
)
from common.flow.laws import CodeLaw, FlowCodes
from common.flow.solver import Carried, SolverConfig, carry
from common.flow.solvers import dpmpp_3m, euler, heun, rk4_rho

SAMPLES = 100_000


@pytest.fixture(scope="module")
def codes():
    return FlowCodes(torch.randn(64, 4, generator=seeded(0)).double())


def seeded(number):
    return torch.Generator().manual_seed(number)


def logprob(rows, size, seed, sharpness=1.5):
    logit = sharpness * torch.randn(rows, size, generator=seeded(seed)).double()
    return logit.log_softmax(-1)


def points(count, width, seed):
    generator = seeded(seed)
    x_ND = torch.randn(count, width, generator=generator).double()
    return x_ND, 0.02 + 0.96 * torch.rand(count, 1, generator=generator).double()


def test_the_score_is_the_gradient_of_the_mixtures_density(codes):
    law = codes.law(logprob(50, 64, 1))
    x_ND, t = points(50, 4, 2)
    x_ND.requires_grad_()
    apart_NVD = x_ND[:, None] - t[..., None] * codes.code_VD
    exponent_NV = -apart_NVD.square().sum(-1) / (2 * (1 - t) ** 2)
    density_N = (law.logprob_NK + exponent_NV).logsumexp(-1)
    (wanted,) = torch.autograd.grad(density_N.sum(), x_ND)
    for at in (at_data_time(t), at_noise_time(1 - t)):
        torch.testing.assert_close(score(law, x_ND.detach(), at), wanted, rtol=1e-9, atol=1e-9)


def test_denoiser_velocity_score_and_noise_are_one_number(codes):
    law, (x_ND, t) = codes.law(logprob(50, 64, 3)), points(50, 4, 4)
    at = at_data_time(t)
    d, v, s = denoised(law, x_ND, at), velocity(law, x_ND, at), score(law, x_ND, at)
    torch.testing.assert_close(d, x_ND + (1 - t) * v, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(s, (t * d - x_ND) / (1 - t) ** 2, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(predicted_noise(law, x_ND, at), x_ND - t * v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(predicted_noise(law, x_ND, at), -(1 - t) * s, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(denoised_of_velocity(v, x_ND, at), d, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(velocity_of_score(s, x_ND, at), v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(score_of_velocity(v, x_ND, at), s, rtol=1e-9, atol=1e-9)


def test_the_field_at_both_ends(codes):
    law, (x_ND, _) = codes.law(logprob(20, 64, 5)), points(20, 4, 6)
    mean_ND = law.logprob_NK.exp() @ codes.code_VD
    torch.testing.assert_close(velocity(law, x_ND, at_data_time(0.0)), mean_ND - x_ND)
    torch.testing.assert_close(score(law, x_ND, at_noise_time(1.0)), -x_ND)
    near_ND = codes.code_VD[:20] + 1e-3
    nearest = denoised(law, near_ND, at_noise_time(1e-3 * codes.least_distance))
    torch.testing.assert_close(nearest, codes.code_VD[:20])


def test_the_velocity_is_the_mean_of_straight_paths(codes):
    """Regressed on any function of x, the straight paths' own velocity leaves nothing over."""
    law = codes.law(logprob(1, 64, 7).expand(SAMPLES, -1))
    generator = seeded(8)
    chosen = torch.multinomial(law.logprob_NK[0].exp(), SAMPLES, True, generator=generator)
    noise_ND = torch.randn(SAMPLES, 4, generator=generator).double()
    t = 0.02 + 0.96 * torch.rand(SAMPLES, 1, generator=generator).double()
    at = at_data_time(t)
    x_ND = noisy(codes.code_VD[chosen], noise_ND, at)
    left_ND = codes.code_VD[chosen] - noise_ND - velocity(law, x_ND, at)

    def largest_z(left_ND):
        directions = torch.randn(20, 4, generator=seeded(9)).double()
        of_x = torch.sin(x_ND @ directions.T + t)
        products = (left_ND.sum(-1, keepdim=True) * of_x).T
        return float((products.mean(1) / (products.std(1) / SAMPLES**0.5)).abs().max())

    assert largest_z(left_ND) < 4
    assert largest_z(codes.code_VD[chosen] - noise_ND + velocity(law, x_ND, at)) > 10


@pytest.mark.parametrize("kind", kinds("common.flow.solvers"))
def test_one_possible_code_is_reached_from_anywhere(codes, kind):
    logprob_NV = torch.full((30, 64), -torch.inf).double()
    logprob_NV[torch.arange(30), torch.arange(30)] = 0.0
    carried = carry(
        load_plugin("common.flow.solvers", kind).Config(),
        codes.law(logprob_NV),
        5 * torch.randn(30, 4, generator=seeded(10)),
    )
    assert torch.equal(carried.token_N, torch.arange(30))


def test_a_straight_line_takes_euler_one_step(codes):
    logprob_NV = torch.full((30, 64), -torch.inf).double()
    logprob_NV[:, 7] = 0.0
    noise_ND = torch.randn(30, 4, generator=seeded(11))
    carried = carry(euler.Config(steps=1), codes.law(logprob_NV), noise_ND)
    torch.testing.assert_close(carried.x_ND, codes.code_VD[7].expand(30, -1))


class Backwards(SolverConfig):
    """The negative control: the velocity of the other paper in this one's time."""

    def solve(self, law, noise_ND):
        x_ND = noise_ND
        for step in range(20):
            x_ND = x_ND - velocity(law, x_ND, at_data_time(step / 20)) / 20
        return Carried(x_ND, law.nearest(x_ND))


@pytest.mark.parametrize(
    ("solver", "least", "most"),
    [
        (rk4_rho.Config(steps=20), 0.0, 0.015),
        (dpmpp_3m.Config(), 0.0, 0.045),
        (heun.Config(steps=10), 0.0, 0.025),
        (euler.Config(steps=10), 0.06, 0.15),
        (Backwards(), 0.2, 1.0),
    ],
    ids=["exact", "DPM-Solver++", "Heun", "Euler", "the wrong sign"],
)
def test_what_is_reached_has_the_laws_frequencies(codes, solver, least, most):
    law = FlowCodes(codes.code_VD.float()).law(logprob(1, 64, 12).float().expand(SAMPLES, -1))
    noise_ND = torch.randn(SAMPLES, 4, generator=seeded(13))
    p_V = law.logprob_NK[0].double().exp()
    found = total_variation(carry(solver, law, noise_ND).token_N, p_V)
    assert least <= found <= most
    if isinstance(solver, rk4_rho.Config):
        draws = (torch.multinomial(p_V, SAMPLES, True, generator=seeded(k)) for k in range(20))
        assert found <= 1.5 * max(total_variation(token_N, p_V) for token_N in draws)


def total_variation(token_N, p_V):
    return float((torch.bincount(token_N, minlength=len(p_V)) / len(token_N) - p_V).abs().sum() / 2)


@pytest.fixture(scope="module")
def truncated(codes):
    """(log-probabilities with 12 of 64 codes possible, noise, the exact tokens)."""
    logprob_NV = logprob(2000, 64, 14)
    kept = logprob_NV >= logprob_NV.topk(12).values[:, -1:]
    logprob_NV = logprob_NV.masked_fill(~kept, -torch.inf).log_softmax(-1)
    noise_ND = torch.randn(2000, 4, generator=seeded(15)).double()
    return logprob_NV, noise_ND, carry(rk4_rho.Config(), codes.law(logprob_NV), noise_ND).token_N


def test_codes_that_are_impossible_may_be_left_out(codes, truncated):
    logprob_NV, noise_ND, token_N = truncated
    gathered = codes.law(logprob_NV)
    assert gathered.logprob_NK.shape[1] == 12
    whole = CodeLaw(codes, logprob_NV, None)
    for solver in (rk4_rho.Config(), dpmpp_3m.Config()):
        tokens = [carry(solver, law, noise_ND).token_N for law in (gathered, whole)]
        assert torch.equal(*tokens)
    assert (logprob_NV.gather(1, token_N[:, None]) > -torch.inf).all()


def test_a_slots_own_codes_count_with_their_width(codes, truncated):
    gathered = codes.law(truncated[0])
    assert gathered.numbers == 12 * 4
    assert CodeLaw(codes, truncated[0], None).numbers == 64


@pytest.mark.parametrize(("possible", "columns"), [(16, 16), (17, 64)])
def test_codes_are_left_out_where_a_slots_own_have_no_more_numbers_than_there_are_codes(
    codes, possible, columns
):
    row_V = torch.full((64,), -torch.inf).double()
    row_V[:possible] = 0
    assert codes.law(row_V.log_softmax(-1)[None]).logprob_NK.shape[1] == columns


def test_the_names_of_codes_do_not_matter(codes, truncated):
    logprob_NV, noise_ND, token_N = truncated
    order_V = torch.randperm(64, generator=seeded(16))
    permuted = FlowCodes(codes.code_VD[order_V]).law(logprob_NV[:, order_V])
    assert torch.equal(order_V[carry(rk4_rho.Config(), permuted, noise_ND).token_N], token_N)


def test_space_may_be_turned(codes, truncated):
    logprob_NV, noise_ND, token_N = truncated
    turn_DD = torch.linalg.qr(torch.randn(4, 4, generator=seeded(17)).double()).Q
    turned = FlowCodes(codes.code_VD @ turn_DD).law(logprob_NV)
    assert torch.equal(carry(rk4_rho.Config(), turned, noise_ND @ turn_DD).token_N, token_N)


def test_company_does_not_matter(codes, truncated):
    logprob_NV, noise_ND, token_N = truncated
    for first in range(0, 2000, 700):
        rows = slice(first, first + 700)
        carried = carry(rk4_rho.Config(), codes.law(logprob_NV[rows]), noise_ND[rows])
        assert torch.equal(carried.token_N, token_N[rows])


def test_the_least_distance_passes_over_codes_that_are_the_same():
    codes = FlowCodes(torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.5]]))
    assert codes.least_distance == pytest.approx(0.5)
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()
    carried = carry(rk4_rho.Config(), codes.law(half), torch.ones(1, 2))
    assert int(carried.token_N) in (0, 1)
