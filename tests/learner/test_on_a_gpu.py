"""A step on a GPU is the CPU's; compiled layers learn the same."""

import pytest
import torch
from building.gpus import needs_gpu

from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import mle

pytestmark = needs_gpu


def steps(student, batch, **settings):
    learner = Learner(
        LearnerConfig.model_validate(settings),
        mle.Config(),
        student,
        seed=0,
        contexts=("data", "student"),
    )
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
