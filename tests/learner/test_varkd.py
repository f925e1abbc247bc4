"""VarKD as a whole: against the oracle of tests/oracles, and every part of it on data contexts."""

import pytest
import torch
from building.objectives import built
from varkd_math import varkd_loss

from learner.categorical import Categorical
from learner.divergence import Divergence
from learner.gate import GateConfig, confidence
from learner.objective import TokenChunk
from learner.objectives import varkd
from learner.process_group import SingleProcess
from learner.reduction import coefficients
from learner.relaxation import (
    RelaxationConfig,
    cluster_codebook,
    cluster_logprob,
    number_by_first_code,
)

V, N = 24, 40
CONTEXTS = ("data", "student")


@pytest.fixture
def scored(tiny, sampled):
    """Two data rows and three rollouts, with the logits of student and teacher."""
    student, teacher = tiny("llamagen", 0), tiny("llamagen", 1)
    batch = sampled(student)
    zs = student(batch.label_B, batch.token_BL, batch.plan).detach()
    zt = teacher(batch.label_B, batch.token_BL, batch.plan).detach()
    lt = zt.log_softmax(-1)
    return batch.scored({"entropy": -(lt.exp() * lt).sum(-1)}, {}), zs, zt


def alphas(batch):
    return confidence(batch.signal["entropy"], V)


@pytest.mark.parametrize("reduction", ["suffix_mean", "seq_mean", "weight_norm"])
@pytest.mark.parametrize("kind", ["rkl", "fkl", "jsd", "tvd"])
@pytest.mark.parametrize("balanced", [False, True])
def test_loss_equals_the_oracle(scored, kind, reduction, balanced):
    """Everything at once on student rows: gate, weight, relaxation, reduction."""
    batch, zs, zt = scored
    batch, zs, zt = batch.rows(slice(2, 5)), zs[2:], zt[2:]
    tau = float(alphas(batch).quantile(0.3))
    relaxation = RelaxationConfig(factor=4, balanced=balanced)
    clusters = cluster_codebook(torch.randn(V, 4), relaxation)
    assert clusters is not None
    config = varkd.Config(
        reduction=reduction, student=Divergence(name=kind), gate=GateConfig(tau=tau)
    )
    objective = built(config, clusters)
    token_weights = objective.token_weights(batch, {}, SingleProcess())
    coefficient_BL = coefficients(reduction, token_weights, batch.context, CONTEXTS, lambda x: x)
    flat = TokenChunk(
        "student",
        batch.token_BL.flatten(),
        Categorical(zs.flatten(0, 1)),
        Categorical(zt.flatten(0, 1)),
    )
    ours = (coefficient_BL.flatten() * objective.token_loss(flat)).sum()
    theirs, info = varkd_loss(
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


def test_presets_are_the_two_readings_of_the_paper():
    equations, text = varkd.Config(), varkd.Config(preset="paper_text")
    assert (equations.student.name, equations.data.name) == ("rkl", "fkl")
    assert (text.student.name, text.data.name) == ("jsd", "jsd")
    assert text.student.beta == text.data.beta == 0.5
    assert equations.gate == text.gate == GateConfig(tau=0.1)
    assert equations.relaxation.factor == 4
    assert varkd.Config(preset="paper_text", student=Divergence(name="tvd")).data == text.data
    tree = {"preset": "paper_text", "student": {"beta": 0.2}}
    partly = varkd.Config.model_validate(tree)
    assert (partly.student, partly.data) == (Divergence(name="jsd", beta=0.2), text.data)


def test_data_has_no_gate_unless_asked(scored):
    batch, _, _ = scored
    tau = float(alphas(batch)[:2].flatten().quantile(0.5))
    gate = GateConfig(tau=tau)
    plain = built(varkd.Config(gate=gate)).token_weights(batch, {}, SingleProcess())
    assert (plain.weight_BL[:2] == 1).all()
    assert plain.support_BL[:2].all()
    gated = built(varkd.Config(gate=gate, data_apply="gate"))
    both = gated.token_weights(batch, {}, SingleProcess())
    assert not both.open_BL[:2].all()
    weight_BL = alphas(batch)[:2] * both.open_BL[:2]
    torch.testing.assert_close(both.weight_BL[:2], weight_BL)
    for field in ("weight_BL", "open_BL", "support_BL"):
        assert torch.equal(getattr(plain, field)[2:], getattr(both, field)[2:])
    assert both.support_BL[:2].all()


def test_data_contexts_take_the_parts_they_are_given():
    generator = torch.Generator().manual_seed(0)
    student = Categorical(2 * torch.randn(N, V, generator=generator))
    teacher = Categorical(2 * torch.randn(N, V, generator=generator))
    student_NV, teacher_NV = student.logprob_NV, teacher.logprob_NV
    token_N = torch.arange(N) % V
    clusters = number_by_first_code(torch.arange(V) // 4)
    given = TokenChunk("data", token_N, student, teacher)
    kl = Divergence(name="fkl")
    fine_N = kl(student_NV, teacher_NV)
    coarse_N = kl(cluster_logprob(student, clusters), cluster_logprob(teacher, clusters))
    labels_N = student_NV[torch.arange(N), token_N]
    mixed = RelaxationConfig(mix=0.5)
    for config, wanted in (
        (varkd.Config(), fine_N),
        (varkd.Config(data_apply="gate"), fine_N),
        (varkd.Config(data_apply="relax"), coarse_N),
        (varkd.Config(data_apply="both", relaxation=mixed), 0.5 * (fine_N + coarse_N)),
        (varkd.Config(cross_entropy=0.1), fine_N - 0.1 * labels_N),
    ):
        torch.testing.assert_close(built(config, clusters).token_loss(given), wanted)


def test_rollouts_are_relaxed_and_the_rest_is_plotted():
    generator = torch.Generator().manual_seed(0)
    one, other = map(Categorical, 2 * torch.randn(2, N, V, generator=generator))
    clusters = number_by_first_code(torch.arange(V) // 4)
    given = TokenChunk("student", torch.zeros(N, dtype=torch.long), one, other)
    objective = built(varkd.Config(), clusters)
    observed = objective.diagnostics(given)
    within_N = observed["within_clusters"]
    assert torch.equal(observed["between_clusters"], objective.token_loss(given))
    loss_N = objective.token_loss(given)
    fine_N = Divergence(name="rkl")(one.logprob_NV, other.logprob_NV)
    torch.testing.assert_close(loss_N + within_N, fine_N)
    half = built(varkd.Config(relaxation=RelaxationConfig(mix=0.5)), clusters)
    torch.testing.assert_close(half.token_loss(given), loss_N + 0.5 * within_N)
    assert built(varkd.Config()).diagnostics(given) == {}
    assert objective.diagnostics(TokenChunk("data", given.token_N, one, other)) == {}
