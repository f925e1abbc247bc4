"""Where input and target differ: networks read one, and are asked for the other."""

import copy
from dataclasses import replace

import pytest
import torch

from common.exchange.signals import guided_hidden
from common.files.tensors import state_digest
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import kd, mle
from learner.teacher_targets import TeacherTargets
from teacher_server.teacher import guided_features

DATA_ROWS = slice(0, 2)


@pytest.fixture
def pair(tiny):
    student, teacher = tiny("llamagen", 0), tiny("llamagen", 1)
    for module in (*student.modules(), *teacher.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return student, teacher


def loss_of(objective, batch, student, teacher):
    signal, head = guided_hidden.Config(), copy.deepcopy(teacher.head)
    digest = state_digest(head)
    with torch.no_grad():
        columns = signal.encode(guided_features(teacher, batch, None), head)
    learner = Learner(
        LearnerConfig.model_validate({"micro_batch": 1, "chunk_tokens": 4}),
        objective,
        copy.deepcopy(student),
        seed=0,
        contexts=("data", "student"),
        teacher=TeacherTargets(signal, head, digest),
    )
    return learner.step(batch.scored(columns, {"head": digest}))["loss"]


@pytest.mark.parametrize("kind", ["mle", "kd"])
def test_both_networks_read_the_input_tokens_and_are_asked_for_the_tokens(pair, sampled, kind):
    """Against -log q(token) and KL(p || q) of both networks' own distributions on the inputs."""
    student, teacher = pair
    batch = sampled(student).rows(DATA_ROWS)
    vocab, length = batch.spec.vocab_size, batch.spec.length
    other_BL = (batch.token_BL + 1 + torch.arange(length)) % vocab
    with torch.no_grad():
        student_BLV = student(batch.label_B, other_BL, batch.plan).log_softmax(-1)
        teacher_BLV = teacher(batch.label_B, other_BL, batch.plan).log_softmax(-1)
    wanted = {
        "mle": -student_BLV.gather(-1, batch.token_BL[..., None]).mean(),
        "kd": (teacher_BLV.exp() * (teacher_BLV - student_BLV)).sum(-1).mean(),
    }[kind]
    objective = {"mle": mle, "kd": kd}[kind].Config()
    perturbed = replace(batch, input_token_BL=other_BL)
    found = loss_of(objective, perturbed, student, teacher)
    assert found == pytest.approx(float(wanted), rel=1e-4)
    equal = replace(batch, input_token_BL=batch.token_BL)
    plain = loss_of(objective, batch, student, teacher)
    assert loss_of(objective, equal, student, teacher) == plain != found
