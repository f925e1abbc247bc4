"""A step on a GPU is the CPU's; compiled layers learn the same."""

from dataclasses import replace

import pytest
import torch
from building.gpus import needs_gpu

from common.exchange.packed_weights import unpack
from learner.config import LearnerConfig
from learner.intake import Taken
from learner.learner import Learner
from learner.objectives import mle

pytestmark = needs_gpu


def learner_of(student, **settings):
    config = LearnerConfig.model_validate(settings)
    return Learner(config, mle.Config(), student, seed=0, contexts=("data", "student"))


def steps(student, batch, **settings):
    learner = learner_of(student, **settings)
    return [learner.step(batch) for _ in range(3)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["llamagen", "var", "arpg"])
def test_three_steps_are_those_of_the_cpu(tiny, sampled, kind, compiled):
    students = [tiny(kind) for _ in range(2)]
    for student in students:
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    batch = sampled(students[0])
    wanted = steps(students[0], batch, device="cpu")
    names = list(students[1].state_dict())
    found = steps(students[1], batch, device="cuda", compile=compiled)
    assert list(students[1].state_dict()) == names
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=2e-3, abs=2e-4, nan_ok=True)


def test_what_the_intake_hands_out_is_pinned_and_learns_the_same(tiny, sampled):
    batch = sampled(tiny("llamagen"))
    signal = {"entropy": torch.rand(batch.token_BL.shape)}
    batch = replace(batch, signal=signal)
    torch.cuda.init()
    pinned = Taken(batch, [0], {}).beside_a_gpu().batch
    assert pinned.signal["entropy"].is_pinned()
    assert pinned.rows(slice(1, 2)).signal["entropy"].is_pinned()
    found = pinned.to(torch.device("cuda")).signal["entropy"]
    assert torch.equal(found.cpu(), signal["entropy"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_published_stays_while_the_learner_goes_on(tiny, sampled, dtype):
    student = tiny("llamagen")
    batch = sampled(student)
    learner = learner_of(student, device="cuda")
    weights = learner.published(dtype)
    assert weights.is_apart
    to = getattr(torch, dtype)
    wanted = {name: value.to("cpu", to) for name, value in student.named_parameters()}
    learner.step(batch)
    found = unpack(weights.payload)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
