"""A worker that computes something else with the learner's weights says so before it samples."""

import pytest
import torch

from common.errors import RunFailed
from common.exchange.schedule import Schedule
from common.exchange.weights import Canary, Weights
from common.models.canary import canary, require
from learner.publisher import CHECKED_EVERY, Publisher


@pytest.mark.parametrize("family", ["llamagen", "var", "arpg"])
def test_what_both_sides_compute_is_the_same_unless_a_weight_is_another(tiny, family):
    learner, worker = tiny(family, seed=1).train(), tiny(family, seed=1).eval()
    state = torch.get_rng_state()
    value = canary(learner)
    assert learner.training, "as it was"
    assert torch.equal(torch.get_rng_state(), state)
    assert value == canary(learner) == pytest.approx(canary(worker), abs=1e-6)
    require(worker, value, "worker-0, version 3")
    require(worker.to(torch.bfloat16), value, "worker-0, version 3")
    require(worker.float(), canary(worker.bfloat16()), "worker-0, version 3", rounding=0.1)
    worker = tiny(family, seed=1)
    with torch.no_grad():
        worker.head.weight.mul_(1.5)
    with pytest.raises(RunFailed, match=r"^worker-0, version 3: computes other log-probabilities"):
        require(worker, value, "worker-0, version 3")
    with torch.no_grad():
        worker.head.weight[0] = float("nan")
    with pytest.raises(RunFailed, match="nan instead of"):
        require(worker, value, "worker-0, version 3")


class Student:
    steps_done = 0

    def published(self, dtype, *, checked):
        return Weights.of(self.steps_done, (), Canary(-3.0) if checked else None)


class Sink(list):
    publish = list.append
    rewind = list.clear


def test_the_first_version_and_then_some_come_with_a_canary():
    sink, student = Sink(), Student()
    schedule = Schedule(100, 8, 4, max_staleness=2, publish_every=1)
    publisher = Publisher(sink, schedule, "float32")
    publisher.begin(student, {})
    for student.steps_done in range(1, 2 * CHECKED_EVERY + 1):
        publisher.publish(student)
    checked = [weights.version for weights in sink if weights.canary is not None]
    assert checked == [0, CHECKED_EVERY, 2 * CHECKED_EVERY]
