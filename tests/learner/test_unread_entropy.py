"""A record has the teacher's entropies where something reads them; a step is the same without."""

import copy
import math

import pytest
import torch
from building.objectives import OF_BACKBONES, built, judged

from common.config.plugins import kinds, load_plugin
from common.exchange.signals import guided_hidden
from common.files.tensors import state_digest
from learner.config import LearnerConfig
from learner.gate import GateConfig
from learner.learner import Learner
from learner.objectives import kd, varkd
from learner.relaxation import number_by_first_code
from learner.teacher_targets import TeacherTargets
from teacher_server.teacher import TeacherConfig, signal_columns

V, L = 24, 6
GATES = [
    GateConfig(tau=0.02),
    GateConfig(mode="speculative", tau=0.02, weight="none"),
    GateConfig(tau=0.02, weight="maxprob"),
    GateConfig(tau=0.02, entropy_space="C"),
    GateConfig(mode="none"),
    GateConfig(mode="none", weight="none"),
]
OBJECTIVES = [
    *(load_plugin("learner.objectives", kind).Config() for kind in OF_BACKBONES),
    *(varkd.Config(gate=gate) for gate in GATES),
]


@pytest.fixture
def models(tiny):
    found = tiny("llamagen", 0), tiny("llamagen", 1)
    for module in (*found[0].modules(), *found[1].modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return found


@pytest.fixture
def records(models, sampled):
    """Two data rows and three rollouts, scored with entropies and without."""
    student, teacher = models
    batch, facts = judged(sampled(student)), {"head": state_digest(teacher.head)}
    return [
        batch.scored(
            signal_columns(TeacherConfig(), teacher, teacher.head, batch, entropy=entropy), facts
        )
        for entropy in (True, False)
    ]


def step(models, objective, batch):
    """Metrics, curves and gradients of a step."""
    student, head = copy.deepcopy(models[0]), copy.deepcopy(models[1].head)
    learner = Learner(
        LearnerConfig(profile_every=1, chunk_tokens=7),
        built(objective, number_by_first_code(torch.arange(V) // 4)),
        student,
        seed=0,
        contexts=("data", "student"),
        teacher=TeacherTargets(guided_hidden.Config(), head, state_digest(head)),
    )
    metrics = learner.step(batch)
    return metrics, learner.profile.take(), [p.grad for p in student.parameters()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda config: config.kind)
def test_a_step_is_the_same_from_a_record_without_entropies(models, records, objective):
    """Who reads none is not asked for any; who does has them from the learner."""
    assert [set(record.signal) for record in records] == [{"hidden", "entropy"}, {"hidden"}]
    (told, _, wanted), (found, _, grads) = (step(models, objective, r) for r in records)
    for found_grad, wanted_grad in zip(grads, wanted, strict=True):
        torch.testing.assert_close(found_grad, wanted_grad, atol=1e-7, rtol=1e-5)
    shown = {name for name in told if not name.startswith(("confidence", "teacher_entropy"))}
    assert {name: found[name] for name in shown} == pytest.approx(
        {name: told[name] for name in shown}, rel=1e-5, abs=1e-7
    )


def test_confidence_without_entropies_is_that_of_watched_tokens(models, records):
    """By loops: one token in eight, by image and slot, of those with a loss."""
    batch, teacher = records[1], models[1]
    with torch.no_grad():
        p_BLV = teacher(batch.label_B, batch.token_BL, batch.plan).log_softmax(-1)
    wanted = {}
    for b, context in enumerate(batch.context):
        for t in range(0 if context == "data" else int(batch.prefix_B[b]), L):
            if (int(batch.id_B[b]) + t) % 8 == 0:
                entropy = torch.distributions.Categorical(logits=p_BLV[b, t]).entropy()
                wanted.setdefault(context, []).append((t, float(entropy)))
    assert wanted
    metrics, window, _ = step(models, kd.Config(), batch)
    for context, found in wanted.items():
        mean = sum(entropy for _, entropy in found) / len(found)
        assert metrics[f"teacher_entropy/{context}"] == pytest.approx(mean, rel=1e-5)
        alpha = 1 - mean / math.log(V)
        assert metrics[f"confidence/{context}"] == pytest.approx(alpha, rel=1e-4, abs=1e-5)
        counts = window["curves"][f"confidence/{context}"]["count"]
        assert counts == [sum(t == slot for t, _ in found) for slot in range(L)]


def test_an_objective_says_whether_it_reads_entropies():
    """A plug-in that weighs tokens itself may look, until it says that it does not."""
    reading = {kind for kind in kinds("learner.objectives") if _config(kind).reads_entropy()}
    assert reading == {"varkd"}
    reads = [varkd.Config(gate=gate).reads_entropy() for gate in GATES]
    assert reads == [True, False, True, False, True, False]

    class Weighing(kd.Config):
        def token_weights(self, batch, state, ranks):
            raise NotImplementedError

    class OfSequences(kd.Config):
        def sequence_loss(self, rows):
            raise NotImplementedError

    assert Weighing().reads_entropy()
    assert OfSequences().reads_entropy()
    assert not kd.Config().reads_entropy()


def _config(kind):
    return load_plugin("learner.objectives", kind).Config()
