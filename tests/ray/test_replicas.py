"""Several actors of one service behind one name; without a cluster."""

import pickle
from threading import Thread

import pytest

from common.errors import RunFailed, ServiceDied, Verdict
from deploy.backend.routes import Route, hear


class Replica:
    """Travels by reference, as an actor's proxy does."""

    def __init__(self, number):
        self.number, self.calls, self.is_dead = number, 0, False

    def __reduce__(self):
        return numbered, (self.number,)

    def score(self, record):
        if self.is_dead:
            raise ServiceDied("gone")
        self.calls += 1
        return record


REPLICAS: list[Replica] = []


def numbered(number):
    return REPLICAS[number]


@pytest.fixture
def replicas():
    REPLICAS[:] = [Replica(number) for number in range(3)]
    return REPLICAS


def calls(replicas):
    return [replica.calls for replica in replicas]


def test_calls_go_round_who_is_there_and_news_reach_a_route_that_travelled(replicas):
    sent = Route("run/teacher", 1, [*replicas], 1)
    route = pickle.loads(pickle.dumps(sent))
    assert [route.score(number) for number in range(7)] == list(range(7))
    assert calls(replicas) == [2, 3, 2]
    replicas[0].is_dead = True
    assert [route.score(number) for number in range(4)] == list(range(4))
    assert calls(replicas) == [2, 5, 4], "who died is left out"
    hear("run/teacher", 3, replicas[2:])
    hear("run/teacher", 2, replicas[:2])  # overtaken
    hear("another/teacher", 4, replicas[:1])
    assert route.score(9) == 9
    assert calls(replicas) == [2, 5, 5]


def test_who_has_nobody_left_to_send_to_waits_for_news(replicas):
    route, answers = Route("run/scorer", 1, replicas[:1], 0), []

    def send():
        try:
            answers.append(route.score(5))
        except RunFailed as error:
            answers.append(str(error))

    for replica in replicas:
        replica.is_dead = True
    for news, answer in ((replicas[1:2], 5), (Verdict(RunFailed, "nobody is left"), None)):
        sender = Thread(target=send)
        sender.start()
        sender.join(0.1)
        assert sender.is_alive()
        replicas[1].is_dead = False
        hear("run/scorer", 2 if answer else 3, news)
        sender.join(10)
        replicas[1].is_dead = True
    assert answers == [5, "nobody is left"]
    replicas[1].is_dead = False
    lasting = Route("run/scorer", 1, replicas[1:2], 0, again_seconds=0.01)
    lasting._leave_out(replicas[1])  # a call was lost on its way
    assert lasting.score(6) == 6, "it is tried again"
