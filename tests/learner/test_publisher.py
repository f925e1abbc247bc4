"""Versions that are sent while the learner goes on, and those that it waits for."""

from dataclasses import replace
from functools import partial
from threading import Event

import numpy as np
import pytest

from common.errors import RunFailed
from common.exchange.schedule import Schedule
from common.exchange.weights import Weights
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import mle
from learner.publisher import Publisher

FREE = Schedule(100, 8, 4, max_staleness=2, publish_every=1)


class Student:
    def __init__(self, *, is_apart=True):
        self.steps_done, self._is_apart = 0, is_apart

    def published(self, dtype, *, checked):
        return Weights(self.steps_done, [np.zeros(8, np.uint8)], is_apart=self._is_apart)


class Sink:
    """Takes a version when it is let, and refuses one."""

    def __init__(self, refused=-1):
        self.free, self.heard, self._refused = Event(), [], refused

    def rewind(self):
        self.heard.clear()

    def publish(self, weights):
        assert self.free.wait(60)
        if weights.version == self._refused:
            raise RunFailed("the store is gone")
        self.heard.append(weights.version)


@pytest.fixture
def sink():
    return Sink()


def test_what_is_apart_is_sent_beside_and_what_follows_it_waits(sink):
    publisher, student = Publisher(sink, FREE, "bfloat16", beside=True), Student()
    publisher.publish(student, lambda: sink.heard.append("committed"))
    assert (sink.heard, publisher.version, publisher.count) == ([], 0, 1)
    sink.free.set()
    student.steps_done = 1
    publisher.publish(student, lambda: sink.heard.append("again"))
    publisher.close()
    assert sink.heard == [0, "committed", 1, "again"]


ORDERED = replace(FREE, ordered=True)


@pytest.mark.parametrize(
    ("is_apart", "beside", "schedule"),
    [(False, True, FREE), (True, False, FREE), (True, True, ORDERED)],
    ids=["the learner's own memory", "one process", "ordered"],
)
def test_others_are_there_when_the_call_returns(sink, is_apart, beside, schedule):
    sink.free.set()
    publisher = Publisher(sink, schedule, "bfloat16", beside=beside)
    publisher.publish(Student(is_apart=is_apart), lambda: sink.heard.append("committed"))
    assert sink.heard == [0, "committed"]
    publisher.close()


@pytest.mark.parametrize("next_call", ["settle", "publish"])
def test_what_could_not_be_sent_fails_the_next_call_once(next_call):
    sink, student, done = Sink(refused=0), Student(), []
    sink.free.set()
    publisher = Publisher(sink, FREE, "bfloat16", beside=True)
    publisher.publish(student, lambda: done.append(0))
    student.steps_done = 1
    again = partial(publisher.publish, student, lambda: done.append(1))
    with pytest.raises(RunFailed, match="the store is gone"):
        (publisher.settle if next_call == "settle" else again)()
    assert done == ([0] if next_call == "settle" else [0, 1]), "steps are committed even so"
    publisher.settle()
    publisher.publish(student, lambda: done.append("later"))
    publisher.close()
    assert (sink.heard, done[-1]) == ([1], "later")


def test_a_learner_on_a_cpu_waits_for_what_it_sends(tiny):
    settings = LearnerConfig(device="cpu")
    learner = Learner(settings, mle.Config(), tiny("llamagen"), seed=0, contexts=("data",))
    assert not any(learner.published(dtype).is_apart for dtype in ("float32", "bfloat16"))
