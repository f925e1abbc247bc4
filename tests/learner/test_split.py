"""Exact under any split: chunks, micro-batches, ranks, and a run that is interrupted."""

import copy
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from building.objectives import OF_BACKBONES, Company, built

from common.config.plugins import load_plugin
from common.errors import InputError
from common.exchange.entropy import entropies
from common.exchange.signals import guided_hidden
from common.files.tensors import state_digest
from learner.chunked import chunked_loss, whole_groups
from learner.config import LearnerConfig
from learner.gate import GateConfig
from learner.horizon import HorizonConfig
from learner.learner import Learner
from learner.objectives import decoupled, gkd, sinkd, varkd
from learner.process_group import SingleProcess
from learner.relaxation import number_by_first_code
from learner.teacher_targets import TeacherTargets
from teacher_server.teacher import guided_features

V = 24
OF_ANY_ROWS = [kind for kind in OF_BACKBONES if kind != "vapi"]
"""Kinds that learn from rows of several conditions and policies; the other is in test_vapi.py."""
RICH = {
    "varkd": {
        "gate": {
            "mode": "running_mean",
            "window": 2,
            "survival_target": 0.6,
            "calibrate_on": 4,
            "control": "random",
            "entropy_space": "C",
            "weight": "maxprob",
        },
        "relaxation": {"mix": 0.7},
        "data_apply": "gate",
    },
    "decoupled": {"horizon": {"start": 1, "grow": 1, "every": 1}},
    "sinkd": {"group": 2, "weight": 0.1},
    "sampled_rkl": {"discount": 0.9},
    "minillm": {"form": "official"},
    "kdrl": {
        "inner": {"kind": "varkd", "gate": {"mode": "running_mean", "window": 2}},
        "advantage": {"std": "batch"},
        "beta": 0.5,
        "schedule": "anneal",
        "decay": 0.1,
    },
}
"""Settings under which as much as possible depends on more than one token."""


@pytest.fixture
def pair(tiny):
    models = tiny("llamagen", 0), tiny("llamagen", 1)
    for module in (*models[0].modules(), *models[1].modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return models


@pytest.fixture
def scored(pair, sampled):
    """One data row and three rollouts, the last two of them a group, as scorers send them."""
    student, teacher = pair
    batch = sampled(student).rows(slice(1, 5))
    with torch.no_grad():
        hidden_BLC = guided_features(teacher, batch, None)
        columns = guided_hidden.Config().encode(hidden_BLC, teacher.head)
        columns["entropy"] = entropies(hidden_BLC, teacher.head)
    groups = {"group_B": torch.tensor([0, 1, 2, 2]), "member_B": torch.tensor([0, 0, 0, 1])}
    judged = {"teacher_logprob": torch.tensor([-2.0, -1.0, -3.0, -1.5])}
    batch = replace(batch, sequence=judged, **groups)
    return batch.scored(columns, {"head": state_digest(teacher.head)})


@pytest.fixture
def learner_of(pair):
    quarters = number_by_first_code(torch.arange(V) // 4)

    def build(objective, ranks=None, clusters=quarters, **given):
        student, teacher = pair
        head = copy.deepcopy(teacher.head)
        # AdamW divides by the gradient's size: where that is only rounding the first step goes
        # anywhere, by one learning rate.
        optimizer = {"max_grad_norm": 1e6, "learning_rate": 1e-6}
        settings = {"micro_batch": 5, "chunk_tokens": 7, "optimizer": optimizer}
        settings |= {"profile_every": 2} | given
        return Learner(
            LearnerConfig.model_validate(settings),
            built(objective, clusters),
            copy.deepcopy(student),
            seed=0,
            contexts=("data", "student"),
            teacher=TeacherTargets(guided_hidden.Config(), head, state_digest(head)),
            ranks=ranks,
        )

    return build


def made(kind, fields):
    return load_plugin("learner.objectives", kind).Config.model_validate(fields)


def stepped(learner, batch, steps=2):
    """Metrics and gradients of the last of some steps on the same batch, and their curves."""
    metrics = [learner.step(batch) for _ in range(steps)][-1]
    grads = {name: p.grad.clone() for name, p in learner._student.named_parameters()}
    return metrics, grads, learner.profile.take()


@pytest.fixture
def assert_same(assert_same_gradients):
    return functools.partial(check_same, assert_same_gradients)


def check_same(assert_same_gradients, found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-4, abs=1e-5)
    assert found[2]["curves"].keys() == wanted[2]["curves"].keys()
    for name, curve in wanted[2]["curves"].items():
        same = found[2]["curves"][name]
        assert same["count"] == curve["count"]
        for mean, right in zip(same["mean"], curve["mean"], strict=True):
            assert mean == (right if right is None else pytest.approx(right, rel=1e-4, abs=1e-5))
    assert_same_gradients(found[1], wanted[1], share=1e-3)


@pytest.mark.parametrize(("kind", "fields"), [*((kind, {}) for kind in OF_ANY_ROWS), *RICH.items()])
def test_two_ranks_learn_as_one(scored, learner_of, assert_same, kind, fields):
    objective = made(kind, fields)
    whole = learner_of(objective)
    wanted = stepped(whole, scored)
    shared, barrier = {}, threading.Barrier(2)
    halves = [learner_of(objective, Company(rank, shared, barrier)) for rank in (0, 1)]
    # Rank 1 has two rollouts, rank 0 the data row and one.
    shares = [scored.rows(slice(0, 2)), scored.rows(slice(2, 4))]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(stepped, halves, shares))
    for half, one in zip(halves, found, strict=True):
        assert_same(one, wanted)
        assert half._state == pytest.approx(whole._state)
    context = "student" if objective.uses_rollouts else "data"
    name = f"divergence/{context}"
    assert found[0][0][name] == found[1][0][name] == pytest.approx(wanted[0][name], rel=1e-4)


@pytest.mark.parametrize("kind", RICH)
def test_chunks_and_micro_batches_change_nothing(scored, learner_of, assert_same, kind):
    objective = made(kind, RICH[kind])
    wanted = stepped(learner_of(objective, micro_batch=4, chunk_tokens=1000), scored)
    for micro_batch, chunk_tokens in ((3, 3), (1, 1)):
        split = {"micro_batch": micro_batch, "chunk_tokens": chunk_tokens}
        assert_same(stepped(learner_of(objective, **split), scored), wanted)


def test_without_a_reward_kdrl_is_gkd_to_the_bit(scored, learner_of):
    divergence = {"name": "rkl"}
    wanted = stepped(learner_of(made("gkd", {"divergence": divergence})), scored)
    inner = {"inner": {"kind": "gkd", "divergence": divergence}}
    for how in ({"kd": "full_rkl"}, inner):
        fields = {"rewards": {"teacher_logprob": 0.0}, "beta": 1.0} | how
        found = stepped(learner_of(made("kdrl", fields)), scored)
        assert found[0].items() >= wanted[0].items()
        for name, grad in wanted[1].items():
            assert torch.equal(found[1][name], grad), name


def test_a_ratio_of_samples_of_another_law_is_refused(scored, learner_of):
    drawn = replace(scored, law=("exact", "exact", "approximate", "exact"))
    for kind in ("kdrl", "minillm", "sampled_rkl"):
        with pytest.raises(InputError, match=f"{kind} corrects by the probability"):
            learner_of(made(kind, {})).step(drawn)
    learner_of(gkd.Config()).step(drawn)


def test_groups_matter_and_are_never_cut(scored, learner_of):
    """Other groups are another loss, so the test above would notice a cut."""
    losses = [
        learner_of(sinkd.Config(group=size, weight=0.1)).step(scored)["loss"] for size in (1, 2, 4)
    ]
    assert len({round(loss, 6) for loss in losses}) == 3
    assert whole_groups((2, 2, 3, 1), 4) == [slice(0, 4), slice(4, 8)]
    assert whole_groups((5, 1, 1), 2) == [slice(0, 5), slice(5, 7)]
    hidden_NC, head = torch.randn(7, 3, requires_grad=True), torch.nn.Linear(3, 2)
    seen = []

    def loss(logit_nV, tokens):
        seen.append((tokens.start, tokens.stop))
        return logit_nV.sum()

    whole = chunked_loss(hidden_NC, head, loss, 3, (2, 2, 3))
    torch.testing.assert_close(whole, head(hidden_NC).sum())
    assert seen == [(0, 2), (2, 4), (4, 7)]


def test_a_resumed_run_keeps_what_its_objective_remembers(scored, learner_of):
    objective = varkd.Config(gate=GateConfig(survival_target=0.6, calibrate_on=3))
    whole = learner_of(objective)
    first = whole.step(scored)
    assert first["gate/tau"] == whole._state["gate/tau"] > 0
    kept = copy.deepcopy(whole.snapshot())
    other = scored.scored(scored.signal | {"entropy": scored.signal["entropy"] * 0.9}, {})
    wanted = whole.step(other)
    resumed = learner_of(objective)
    resumed.restore(kept, step=1)
    found = resumed.step(other)
    assert found["gate/tau"] == first["gate/tau"] == wanted["gate/tau"]
    assert found["survival/student"] == wanted["survival/student"]
    fresh = learner_of(objective)
    assert fresh.step(other)["gate/tau"] != first["gate/tau"]


def test_a_snapshot_of_another_cluster_map_is_refused(learner_of):
    kept = learner_of(varkd.Config()).snapshot()
    assert kept["owned"]["clusters"]["cluster_V"].tolist() == [v // 4 for v in range(V)]
    other = number_by_first_code(torch.arange(V) % 6)
    with pytest.raises(InputError, match="trained with clusters of digest"):
        learner_of(varkd.Config(), clusters=other).restore(kept, step=1)
    with pytest.raises(InputError, match="but the run has None"):
        learner_of(gkd.Config(), clusters=None).restore(kept, step=1)


def test_the_horizon_grows_while_the_student_is_undecided(scored, learner_of):
    alone = replace(scored, group_B=None, member_B=None)

    def lengths(min_entropy):
        horizon = HorizonConfig(start=1, grow=2, every=2, min_entropy=min_entropy)
        learner = learner_of(decoupled.Config(horizon=horizon))
        return [learner.step(alone) for _ in range(5)]

    rows = lengths(0.0)
    assert [row["horizon/length"] for row in rows] == [1, 3, 3, 5, 5]
    assert all(row["student_entropy/student"] > 0 for row in rows)
    weights = [row["survival/student"] for row in rows]
    assert weights == pytest.approx([1.0] * 5)  # the denominator is the horizon too
    assert [row["horizon/length"] for row in lengths(99.0)] == [1] * 5


def test_a_horizon_of_one_trains_the_first_slot_of_every_rollout(scored, learner_of):
    objective = decoupled.Config(horizon=HorizonConfig(start=1))
    token_weights = objective.token_weights(scored, {}, SingleProcess())
    assert token_weights.weight_BL[0].tolist() == [1] * 6
    assert token_weights.weight_BL[1:].tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
    ]


def test_teacher_quantities_are_those_of_its_whole_distribution(pair, scored):
    _, teacher = pair
    clusters = number_by_first_code(torch.arange(V) // 4)
    view = TeacherTargets(guided_hidden.Config(), teacher.head, "")
    objective = {
        "gate": {"mode": "speculative", "entropy_space": "C", "weight": "maxprob"},
        "relaxation": {"factor": 4},
    }
    quantities = built(varkd.Config.model_validate(objective), clusters).reads()
    found = view.read(scored, quantities, chunk=5)
    logprob = teacher(scored.label_B, scored.token_BL, scored.plan).log_softmax(-1)
    token = logprob.gather(-1, scored.token_BL[..., None])[..., 0]
    torch.testing.assert_close(found["token_logprob"], token, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["max_prob"], logprob.exp().amax(-1), atol=1e-5, rtol=1e-4)
    coarse = logprob.exp().unflatten(-1, (V // 4, 4)).sum(-1)
    alpha = 1 + (coarse * coarse.log()).sum(-1) / torch.tensor(V / 4).log()
    torch.testing.assert_close(found["cluster_confidence"], alpha, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"sequence_level": True, "kd": "full_rkl"}])
def test_profiled_steps_compare_the_gradients_of_reward_and_distillation(
    scored, learner_of, fields
):
    """With those of a step that has one of them alone, and they change nothing."""

    def step(every, **given):
        learner = learner_of(made("kdrl", fields | given), profile_every=every)
        return [learner.step(scored) for _ in range(2)]

    plain = step(0, beta=0.3)
    first, second = step(2, beta=0.3)
    names = {f"kdrl/grad_{name}" for name in ("norm_kd", "norm_reward", "ratio")}
    assert second.keys() - first.keys() == names
    assert [first["grad_norm"], second["grad_norm"]] == [row["grad_norm"] for row in plain]
    reward, kd = step(0, beta=0.0)[1], step(0, beta=0.3, rewards={"teacher_logprob": 0.0})[1]
    assert second["kdrl/grad_norm_reward"] == pytest.approx(reward["grad_norm"], rel=1e-3)
    assert second["kdrl/grad_norm_kd"] == pytest.approx(kd["grad_norm"], rel=1e-3)
    ratio = second["kdrl/grad_norm_kd"] / second["kdrl/grad_norm_reward"]
    assert second["kdrl/grad_ratio"] == ratio
    constant = step(2, beta=0.3, rewards={"teacher_logprob": 0.0})[1]
    assert constant["kdrl/grad_norm_reward"] == 0
    assert "kdrl/grad_ratio" not in constant
