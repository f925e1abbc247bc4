"""Contracts of every objective, and each against a literal transcription of its formula."""

from dataclasses import replace

import pytest
import torch
from building.objectives import OF_TOKENS, built, contexts_of, logprobs, resources
from torch.nn import functional as F

from common.config.plugins import kinds, load_plugin
from learner.categorical import Categorical
from learner.divergence import Divergence
from learner.objective import TokenChunk
from learner.objectives import (
    atkd,
    decoupled,
    distillm,
    distillspec,
    entropy_aware,
    gkd,
    imitkd,
    kd,
    mle,
    sinkd,
    varkd,
)
from learner.relaxation import number_by_first_code
from learner.resources import NAMES, Resources

V, C, N = 24, 7, 40
NOT_ZERO_AT_THE_TEACHER = {
    ("dd1", "teacher"),  # the teacher's tokens
    ("mle", "data"),  # labels
    ("minillm", "data"),
    ("sar", "data"),
    ("sar", "student"),
    ("vapi", "student"),
    ("imitkd", "data"),  # a hard target
    ("imitkd", "student"),
    ("sequencematch", "data"),  # labels, and values
    ("sequencematch", "student"),
    ("sinkd", "data"),  # a transport plan of finite epsilon
    ("sinkd", "student"),
}


@pytest.fixture(params=kinds("learner.objectives"))
def objective(request, clusters):
    config = load_plugin("learner.objectives", request.param).Config()
    return built(config, clusters)


@pytest.fixture(params=OF_TOKENS)
def of_tokens(request, clusters):
    return built(load_plugin("learner.objectives", request.param).Config(), clusters)


@pytest.fixture
def clusters():
    generator = torch.Generator().manual_seed(0)
    label_V = torch.cat([torch.arange(C), torch.randint(C, (V - C,), generator=generator)])
    return number_by_first_code(label_V)


@pytest.fixture
def student_NV():
    return logprobs(0, N, V).requires_grad_()


@pytest.fixture
def teacher_NV():
    return logprobs(1, N, V)


def chunk(student_NV, teacher_NV, context="student", column=None):
    token_N = torch.arange(N) % V
    generator = torch.Generator().manual_seed(9)
    names = ("easy", "advantage", "beta", "discount", "return")
    numbers = {name: torch.rand(N, generator=generator).round() for name in names}
    laws = Categorical(student_NV), Categorical(teacher_NV)
    numbers["behaviour"] = student_NV.detach().gather(-1, token_N[:, None])[:, 0]
    return TokenChunk(context, token_N, *laws, numbers | (column or {}), (30, 10))


def drawn_from(objective, student_NV):
    """Columns of objectives that see several draws of each token."""
    if "draws" not in objective.config.columns:
        return {}
    draw_N2 = torch.stack([torch.arange(N) % V, (torch.arange(N) + 5) % V], -1)
    behaviour_N2 = student_NV.detach().gather(-1, draw_N2)
    better_N2 = torch.tensor([1.0, -1.0]).expand(N, 2)
    own = {"draws": draw_N2, "behaviour": behaviour_N2, "advantages": better_N2}
    return own | {"target": torch.arange(N) % V}


def test_kind_is_the_file_name(objective):
    kind = objective.config.kind
    assert type(objective.config).__module__ == f"learner.objectives.{kind}"
    docstring = load_plugin("learner.objectives", kind).__doc__ or ""
    assert "arXiv" in docstring or kind in ("mle", "sampled_rkl")


def test_what_is_declared_is_all_that_is_asked_for(objective, clusters):
    """And what it keeps in snapshots has a digest to compare."""
    declared = objective.config.resources()
    assert declared <= NAMES
    given = resources(clusters)
    again = objective.config.build(given.only(declared))
    assert again.owned().keys() == objective.owned().keys()
    assert all(owned["digest"] for owned in again.owned().values())
    assert set(objective.reads()) <= {"token_logprob", "max_prob", "cluster_confidence"}


def test_what_was_not_declared_is_refused_by_name(clusters):
    nothing = Resources(clusters=lambda relaxation: clusters).only(())
    with pytest.raises(ValueError, match="asks for the resource 'clusters', but only \\[\\] are"):
        varkd.Config().build(nothing)
    with pytest.raises(ValueError, match="asks for the resource 'render'"):
        nothing.only(["render"])


def test_loss_is_finite_with_a_gradient(of_tokens, student_NV, teacher_NV):
    for context in contexts_of(of_tokens):
        given = chunk(student_NV, teacher_NV, context, drawn_from(of_tokens, student_NV))
        loss_N = of_tokens.token_loss(given)
        (grad,) = torch.autograd.grad(loss_N.sum(), student_NV)
        assert loss_N.shape == (N,)
        assert torch.isfinite(loss_N).all()
        assert grad.abs().sum() > 0
        observed = of_tokens.diagnostics(given)
        assert set(observed) <= set(of_tokens.config.diagnosed)
        assert all(0 < len(value_n) <= N for value_n in observed.values())


def test_student_equal_to_teacher_gives_zero(of_tokens):
    same_NV = logprobs(0, N, V)
    for context in contexts_of(of_tokens):
        if (of_tokens.config.kind, context) in NOT_ZERO_AT_THE_TEACHER:
            continue
        logit_NV = same_NV.clone().requires_grad_()
        column = {"advantage": torch.zeros(N), "return": torch.zeros(N)}
        given = chunk(logit_NV.log_softmax(-1), same_NV, context, column)
        loss_N = of_tokens.token_loss(given)
        loss_N.sum().backward()
        torch.testing.assert_close(loss_N, torch.zeros(N), atol=1e-5, rtol=0)
        if of_tokens.config.kind == "distillspec":
            continue  # |p - q| has a kink there
        torch.testing.assert_close(logit_NV.grad, torch.zeros(N, V), atol=1e-5, rtol=0)


def agree(objective, given, literal):
    """Value, and gradient in the logits, against a formula in float64, per token."""
    logit_NV = given.student.logit_NV
    fresh = replace(given, student=Categorical(logit_NV))  # without what another call computed
    found_N = objective.token_loss(fresh)
    (found,) = torch.autograd.grad(found_N.sum(), logit_NV)
    exact_NV = logit_NV.detach().double().requires_grad_()
    wanted_N = literal(exact_NV.log_softmax(-1), given.required_teacher_NV.double(), given.token_N)
    (wanted,) = torch.autograd.grad(wanted_N.sum(), exact_NV)
    torch.testing.assert_close(found_N.double(), wanted_N, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)


def kl(log_a, log_b):
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def target(logprob_NV, token_N):
    return logprob_NV[torch.arange(N), token_N]


def test_mle_is_cross_entropy(student_NV, teacher_NV):
    agree(mle.Config(), chunk(student_NV, teacher_NV), lambda q, p, y: -target(q, y))


def test_kd_mixes_soft_targets_at_a_temperature_with_labels(student_NV, teacher_NV):
    """Hinton: (1 - a) CE + a T^2 KL(p^(1/T) || q^(1/T)); labels only where there is data."""

    def soft(q, p, y):
        p, q = (p.exp() ** 0.5, q.exp() ** 0.5)
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        return 0.7 * 4 * (p * (p / q).log()).sum(-1)

    ours = kd.Config(temperature=2.0, alpha=0.7)
    agree(ours, chunk(student_NV, teacher_NV), soft)
    given = chunk(student_NV, teacher_NV, context="data")
    agree(ours, given, lambda q, p, y: soft(q, p, y) - 0.3 * target(q, y))
    agree(kd.Config(), given, lambda q, p, y: kl(p, q))


def test_gkd_distillspec_and_distillm_are_their_divergences(student_NV, teacher_NV):
    given = chunk(student_NV, teacher_NV)
    q, p = student_NV.exp(), teacher_NV.exp()
    m = 0.5 * (p + q)
    jsd = 0.5 * (p * (p / m).log()).sum(-1) + 0.5 * (q * (q / m).log()).sum(-1)
    tvd = 0.5 * (p - q).abs().sum(-1)
    skl = (p * (p / (0.1 * p + 0.9 * q)).log()).sum(-1)
    srkl = (q * (q / (0.9 * p + 0.1 * q)).log()).sum(-1)
    reverse = distillm.Config(divergence=Divergence(name="srkl"))
    for objective, wanted in (
        (gkd.Config(), jsd),
        (distillspec.Config(), tvd),
        (distillm.Config(), skl),
        (reverse, srkl),
    ):
        torch.testing.assert_close(objective.token_loss(given), wanted, atol=1e-5, rtol=1e-4)
    acceptance_N = distillspec.Config().diagnostics(given)["acceptance"]
    torch.testing.assert_close(acceptance_N, torch.minimum(p, q).sum(-1))


def test_imitkd_imitates_the_teachers_best_codes(student_NV, teacher_NV):
    given = chunk(student_NV, teacher_NV)
    agree(imitkd.Config(), given, lambda q, p, y: -target(q, p.argmax(-1)))
    agree(imitkd.Config(top_k=0), given, lambda q, p, y: kl(p, q))

    def soft(q, p, y):
        keep = p >= p.sort(-1, descending=True).values[:, 4:5]
        label = torch.where(keep, p.exp(), 0.0)
        label = label / label.sum(-1, keepdim=True)
        return torch.where(keep, label * (label.clamp_min(1e-9).log() - q), 0.0).sum(-1)

    agree(imitkd.Config(top_k=5), given, soft)


def test_atkd_treats_easy_and_hard_tokens_apart(student_NV, teacher_NV):
    """KL = TKD + UNC DKD; easy: share DKD, hard: (1 - share)(TKD + DKD)."""

    def parts(q, p, y):
        p_y, q_y = target(p, y).exp(), target(q, y).exp()
        tkd = p_y * (p_y / q_y).log() + (1 - p_y) * ((1 - p_y) / (1 - q_y)).log()
        others = F.one_hot(y, V) == 0
        p_rest = (p.exp() / (1 - p_y)[:, None])[others].view(N, V - 1)
        q_rest = (q.exp() / (1 - q_y)[:, None])[others].view(N, V - 1)
        return tkd, (p_rest * (p_rest / q_rest).log()).sum(-1), 1 - p_y

    easy_N = torch.arange(N) % 3 == 0

    def literal(q, p, y):
        tkd, dkd, _ = parts(q, p, y)
        return torch.where(easy_N, 0.2 * dkd, 0.8 * (tkd + dkd))

    given = chunk(student_NV, teacher_NV, column={"easy": easy_N.float()})
    agree(atkd.Config(), given, literal)
    # Log-probabilities of float32 don't sum to one in float64: normalise them there.
    q, p = student_NV.double().log_softmax(-1), teacher_NV.double().log_softmax(-1)
    tkd, dkd, unc = parts(q, p, given.token_N)
    torch.testing.assert_close(tkd + unc * dkd, kl(p, q), atol=1e-10, rtol=1e-10)


def test_decoupled_mixes_the_two_directions(student_NV, teacher_NV):
    share = {"rkl_share": 0.25}
    ours = decoupled.Config.model_validate({"divergence": {"name": "mix", **share}})
    assert ours == decoupled.Config()
    given = chunk(student_NV, teacher_NV)
    agree(ours, given, lambda q, p, y: 0.25 * kl(q, p) + 0.75 * kl(p, q))
    for end, wanted in ((0.0, lambda q, p, y: kl(p, q)), (1.0, lambda q, p, y: kl(q, p))):
        agree(decoupled.Config(divergence=Divergence(name="mix", rkl_share=end)), given, wanted)


def test_entropy_aware_adds_forward_kl_where_the_teacher_is_unsure(student_NV, teacher_NV):
    entropy_N = -(teacher_NV.exp() * teacher_NV).sum(-1)
    threshold = float(entropy_N.median())

    def literal(q, p, y):
        best = p.topk(16, dim=-1).indices
        q_best, p_best = q.gather(-1, best), p.gather(-1, best)
        q_rest, p_rest = 1 - q_best.exp().sum(-1), 1 - p_best.exp().sum(-1)
        added = kl(p_best, q_best) + p_rest * (p_rest / q_rest).log()
        return kl(q, p) + torch.where(entropy_N > threshold, added, 0.0)

    given = chunk(student_NV, teacher_NV)
    agree(entropy_aware.Config(threshold=threshold), given, literal)
    found_N = entropy_aware.Config(threshold=threshold).token_loss(given)
    plain_N = entropy_aware.Config(threshold=99.0).token_loss(given)
    assert 0 < int((found_N > plain_N + 1e-6).sum()) < N


def test_sinkd_adds_the_published_transport_cost_of_each_group(student_NV, teacher_NV):
    """Value and gradient, through the iterations, of the authors' few lines."""

    def published(q, p):
        q, p = (q / 2).softmax(-1), (p / 2).softmax(-1)
        cost = (q[:, None] - p[None]).abs().sum(-1)
        plan = torch.exp(-cost / 0.1)
        for _ in range(20):
            plan = plan / plan.sum(1, keepdim=True)
            plan = plan / plan.sum(0, keepdim=True)
        return 1e-3 * (plan * cost).sum()

    given = chunk(student_NV, teacher_NV)
    assert given.groups == (30, 10)
    found_N = sinkd.Config().token_loss(given) - kd.Config().token_loss(given)
    for rows in (slice(0, 30), slice(30, 40)):
        q_nV = student_NV.detach()[rows].requires_grad_()
        wanted = published(q_nV, teacher_NV[rows])
        torch.testing.assert_close(found_N[rows].mean(), wanted, atol=1e-6, rtol=1e-4)
        (grad,) = torch.autograd.grad(found_N[rows].mean(), student_NV, retain_graph=True)
        (expected,) = torch.autograd.grad(wanted, q_nV)
        torch.testing.assert_close(grad[rows], expected, atol=1e-7, rtol=1e-3)
