"""The supervisor adds, replaces and retires workers; hand-made workers and services."""

import time
from dataclasses import dataclass, field
from threading import Event

import pytest

from common.errors import InputError, ServiceDied, Verdict
from deploy.backend.supervisor import WorkerSupervisor
from rollout.config import RolloutConfig


class Worker:
    """Runs until it is told to stop, or until it is given something to die of."""

    def __init__(self) -> None:
        self.over, self.error = Event(), None

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
        self.made[name] = Worker()
        return self.made[name]


@pytest.fixture
def start():
    started = []

    def begin(**settings):
        services = Services()
        supervisor = WorkerSupervisor(
            services, services.make, RolloutConfig(**settings), end_worker=services.ended.append
        )
        started.append(supervisor)
        return services, supervisor

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
    services, supervisor = start(workers=2, max_restarts=1)
    first, died = services.made["worker-0"], ServiceDied("its machine is gone")
    first.die(died)
    until(supervisor, lambda: "worker-2" in supervisor.workers)
    assert (list(supervisor.workers), supervisor.alive) == (["worker-1", "worker-2"], 2)
    assert (services.expired, services.ended) == (["worker-0"], [first])
    services.made["worker-2"].die(died)
    until(supervisor, lambda: len(supervisor.deaths) == 2)
    assert list(supervisor.workers) == ["worker-1"], "once was all"
    assert not services.closed
    services.made["worker-1"].die(died)
    until(supervisor, lambda: services.closed)
    assert "0 rollout workers are left" in str(supervisor.failure)
    assert "worker-1 had 1 open leases: its machine is gone" in str(supervisor.failure)


def test_the_last_worker_may_be_replaced_too(start):
    services, supervisor = start(workers=1, max_restarts=1)
    services.made["worker-0"].die(RuntimeError("a fault"))
    until(supervisor, lambda: "worker-1" in supervisor.workers)
    assert supervisor.failure is None
    assert "RuntimeError: a fault" in supervisor.deaths["worker-0"]


def test_workers_are_added_while_others_run_up_to_what_the_services_bear(start):
    _, supervisor = start(workers=1)
    assert supervisor.add() == "worker-1"
    assert list(supervisor.workers) == ["worker-0", "worker-1"]
    with pytest.raises(ValueError, match="2 workers run"):
        supervisor.add()


def test_a_worker_retires_in_order_and_leaves_what_it_could_not_hand_over(start):
    services, supervisor = start(workers=2, max_restarts=1)
    leaver = services.made["worker-0"]
    supervisor.retire("worker-0")
    assert supervisor.alive == 1
    until(supervisor, lambda: list(supervisor.workers) == ["worker-1"])
    assert (services.expired, services.ended) == (["worker-0"], [leaver])
    assert (supervisor.deaths, services.closed) == ({}, [])
    assert list(services.made) == ["worker-0", "worker-1"], "nobody takes its place"
    with pytest.raises(ValueError, match="fewer than rollout"):
        supervisor.retire("worker-1")
    with pytest.raises(ValueError, match="no worker worker-0 runs"):
        supervisor.retire("worker-0")


def test_a_worker_that_dies_while_it_retires_is_not_replaced(start):
    services, supervisor = start(workers=2, max_restarts=1)
    services.made["worker-0"].error = ServiceDied("gone before it was done")
    supervisor.retire("worker-0")
    until(supervisor, lambda: supervisor.deaths)
    assert list(supervisor.workers) == ["worker-1"]
    assert services.expired == ["worker-0"]
    assert list(services.made) == ["worker-0", "worker-1"]


def test_a_worker_that_says_why_it_cannot_go_on_ends_the_run_and_is_not_replaced(start):
    services, supervisor = start(workers=2, max_restarts=5)
    services.made["worker-1"].die(InputError("the teacher is of other tokens"))
    until(supervisor, lambda: services.closed)
    assert services.closed == [Verdict(InputError, "the teacher is of other tokens")]
    until(supervisor, lambda: not supervisor.workers)
    assert (list(services.made), supervisor.deaths) == (["worker-0", "worker-1"], {})
