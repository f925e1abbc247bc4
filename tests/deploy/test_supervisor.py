"""The supervisor adds, replaces and retires workers; hand-made workers and services."""

import time
from dataclasses import dataclass, field
from threading import Event

import pytest

from common.errors import InputError, ServiceDied, Verdict
from deploy.backend.role import ROLLOUT, Role, replica_limits, worker_limits
from deploy.backend.supervisor import Supervisor
from rollout.config import RolloutConfig
from teacher_server.replicas import ReplicasConfig


class Worker:
    """Runs until it is told to stop, or until it is given something to die of."""

    def __init__(self, name: str) -> None:
        self.name, self.over, self.error = name, Event(), None

    def run(self) -> int:
        assert self.over.wait(20)
        if self.error is not None:
            raise self.error
        return 3

    def stop(self) -> None:
        self.over.set()

    def die(self, error: Exception) -> None:
        self.error = error
        self.over.set()


@dataclass
class Services:
    """A ledger and the rest of a run: they note what they are told."""

    expired: list[str] = field(default_factory=list)
    closed: list[Verdict | str] = field(default_factory=list)
    made: dict[str, Worker] = field(default_factory=dict)
    ended: list[Worker] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)
    news: list[list[str] | Verdict] = field(default_factory=list)

    @property
    def ledger(self) -> "Services":
        return self

    def expire(self, worker: str) -> list[int]:
        self.expired.append(worker)
        return [7]

    def close(self, cause: Verdict | str) -> None:
        self.closed.append(cause)
        for worker in self.made.values():
            worker.over.set()

    def make(self, name: str) -> Worker:
        assert name not in self.made, "no name is used twice"
        self.made[name] = Worker(name)
        return self.made[name]

    def end(self, worker: Worker) -> None:
        """Its process is gone, whether it was there or not."""
        assert worker not in self.ended
        self.ended.append(worker)
        worker.die(ServiceDied("was ended"))

    def announce(self, role: str, members, to) -> None:
        """Who may be sent to, by number."""
        self.news.append(members if isinstance(members, Verdict) else [m.name for m in members])
        assert set(to) <= set(self.made.values())

    def is_there(self, worker: Worker) -> bool:
        return all(self.made[name] is not worker for name in self.away)


@pytest.fixture
def start():
    started = []

    def begin(**settings):
        services = Services()
        limits = worker_limits(RolloutConfig(**settings))
        workers = Role(limits, "worker", services.make)
        supervisor = Supervisor(services, {ROLLOUT: workers}, services, services.told.append)
        started.append(supervisor)
        return services, supervisor, supervisor.crews[ROLLOUT]

    yield begin
    for supervisor in started:
        supervisor.dismiss()


def until(supervisor, condition):
    deadline = time.monotonic() + 20
    while not condition():
        supervisor.check()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def test_a_dead_worker_is_replaced_as_often_as_the_config_allows(start):
    services, supervisor, workers = start(workers=2, max_restarts=1)
    first, died = services.made["worker-0"], ServiceDied("its machine is gone")
    first.die(died)
    until(supervisor, lambda: "worker-2" in workers.members)
    assert (list(workers.members), workers.alive) == (["worker-1", "worker-2"], 2)
    assert (services.expired, services.ended) == (["worker-0"], [first])
    assert supervisor.replaced["worker-0"]["by"] == "worker-2"
    services.made["worker-2"].die(died)
    until(supervisor, lambda: len(supervisor.deaths) == 2)
    assert list(workers.members) == ["worker-1"], "once was all"
    assert not services.closed
    services.made["worker-1"].die(died)
    until(supervisor, lambda: services.closed)
    assert "0 rollout workers are left" in str(supervisor.failure)
    assert "worker-1 had 1 open leases: its machine is gone" in str(supervisor.failure)
    assert services.told[0] == "its machine is gone; worker-2 takes its place"
    assert "nobody takes its place (rollout.max_restarts)" in services.told[1]


def test_the_last_worker_may_be_replaced_too(start):
    services, supervisor, workers = start(workers=1, max_restarts=1)
    services.made["worker-0"].die(RuntimeError("a fault"))
    until(supervisor, lambda: "worker-1" in workers.members)
    assert supervisor.failure is None
    assert "RuntimeError: a fault" in supervisor.deaths["worker-0"]


def test_workers_are_added_while_others_run_up_to_what_the_services_bear(start):
    _, _, workers = start(workers=1)
    assert workers.add() == "worker-1"
    assert list(workers.members) == ["worker-0", "worker-1"]
    with pytest.raises(ValueError, match="2 rollout workers run"):
        workers.add()


def test_a_worker_retires_in_order_and_leaves_what_it_could_not_hand_over(start):
    services, supervisor, workers = start(workers=2, max_restarts=1)
    leaver = services.made["worker-0"]
    workers.retire("worker-0")
    assert workers.alive == 1
    until(supervisor, lambda: list(workers.members) == ["worker-1"])
    assert (services.expired, services.ended) == (["worker-0"], [leaver])
    assert (supervisor.deaths, services.closed) == ({}, [])
    assert list(services.made) == ["worker-0", "worker-1"], "nobody takes its place"
    with pytest.raises(ValueError, match=r"fewer than 1 .rollout\.min_workers"):
        workers.retire("worker-1")
    with pytest.raises(ValueError, match="no worker-0 runs"):
        workers.retire("worker-0")


def test_a_worker_that_dies_while_it_retires_is_not_replaced(start):
    services, supervisor, workers = start(workers=2, max_restarts=1)
    services.made["worker-0"].error = ServiceDied("gone before it was done")
    workers.retire("worker-0")
    until(supervisor, lambda: supervisor.deaths)
    assert list(workers.members) == ["worker-1"]
    assert services.expired == ["worker-0"]
    assert list(services.made) == ["worker-0", "worker-1"]


def test_a_worker_that_says_why_it_cannot_go_on_ends_the_run_and_is_not_replaced(start):
    services, supervisor, workers = start(workers=2, max_restarts=5)
    services.made["worker-1"].die(InputError("the teacher is of other tokens"))
    until(supervisor, lambda: services.closed)
    assert services.closed == [Verdict(InputError, "the teacher is of other tokens")]
    until(supervisor, lambda: not workers.members)
    assert (list(services.made), supervisor.deaths) == (["worker-0", "worker-1"], {})


def test_scaling_takes_those_first_who_wait_for_room_and_nobody_waits_for_them(start):
    services, supervisor, workers = start(workers=2, min_workers=2, max_workers=5)
    services.away = {"worker-3", "worker-4"}
    assert workers.scale(5) == ["worker-2", "worker-3", "worker-4"]
    supervisor.check()
    assert (workers.alive, workers.pending) == (5, ["worker-3", "worker-4"])
    services.away = {"worker-4"}
    supervisor.check()
    assert workers.pending == ["worker-4"]
    assert workers.scale(3) == ["worker-4", "worker-3"]
    assert services.ended == [services.made["worker-4"]], "at once: it has begun nothing"
    until(supervisor, lambda: list(workers.members) == ["worker-0", "worker-1", "worker-2"])
    assert (workers.alive, supervisor.deaths, supervisor.failure) == (3, {}, None)
    assert sorted(services.expired) == ["worker-3", "worker-4"]
    assert workers.scale(3) == []
    for count in (1, 6):
        sentence = rf"rollout={count}, but this run has 2 \(rollout.min_workers\) to 5"
        with pytest.raises(InputError, match=sentence):
            workers.scale(count)
    assert (workers.alive, services.told) == (3, ["worker-3 has retired"])


def test_replicas_are_replaced_and_who_sends_to_them_hears_who_is_there():
    services = Services()
    limits = replica_limits(ReplicasConfig(replicas=2, max_restarts=1), "scorer-a", "scorers.a")
    first = {name: services.make(name) for name in ("scorer-a-0", "scorer-a-1")}
    role = Role(limits, "scorer-a", services.make, first, is_asked=True)
    supervisor = Supervisor(services, {"scorer-a": role}, services, services.told.append)
    replicas = supervisor.crews["scorer-a"]
    supervisor.check()
    assert services.news == [], "everybody was handed the way to the first"
    services.away = {"scorer-a-2"}
    first["scorer-a-0"].die(ServiceDied("its machine is gone"))
    until(supervisor, lambda: "scorer-a-2" in replicas.members)
    assert services.news == [["scorer-a-1"]], "nobody waits for who is on the way"
    assert supervisor.replaced == {}
    services.away = set()
    supervisor.check()
    assert 0 < supervisor.replaced["scorer-a-0"]["seconds"] < 20
    assert supervisor.scale("scorer-a", 1) == ["scorer-a-2"], "the youngest"
    assert services.news[1:] == [["scorer-a-1", "scorer-a-2"], ["scorer-a-1"]]
    until(supervisor, lambda: list(replicas.members) == ["scorer-a-1"])
    with pytest.raises(InputError, match=r"scorer-a=5, but this run has 1 to 4 \(2 \* scorers\.a"):
        supervisor.scale("scorer-a", 5)
    first["scorer-a-1"].die(ServiceDied("out of memory"))
    until(supervisor, lambda: services.closed)
    assert services.closed == [supervisor.failure]
    assert str(supervisor.failure).endswith("0 scorer-a replicas are left: out of memory')")
    assert services.news[3:] == [supervisor.failure], "nobody waits for them any more"
    assert "nobody takes its place (scorers.a.max_restarts)" in services.told[-1]
    assert services.expired == [], "they hold no leases"
    supervisor.dismiss()
